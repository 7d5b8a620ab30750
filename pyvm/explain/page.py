"""An explanation as one HTML file: no network, no other files, one small script of our own and no other.

Everything that comes from a program is text that somebody else chose: it is escaped on its way into the page, and a
content security policy names the digest of our script, so that nothing else runs even if something slipped through.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from functools import cache
from importlib import resources
from typing import Any

from pyvm.ir.prim import Extremum, FloorDiv, FloorMod, Poly, PrimExpr, SymVar

from . import graph_picture, memory_picture, sizes
from .escaping import esc
from .model import Explanation, FunctionExplanation, Instruction, Operand, Totals
from .sizes import Size
from .text import bytes_text, count_text, rate_text, time_text
from .values import shape_text

_ASSUMED = (16, 64, 576, 4096)  # values of a symbol that nobody gave one: the first that no size is negative for
MAX_ROWS = 5000
_SHOWN_CATEGORIES = {
    "product": "products and convolutions",
    "elementwise": "elementwise",
    "reduction": "reductions, pooling, normalization",
    "movement": "movement of data",
    "calls": "calls",
    "other": "other functions",
    "memory": "memory",
    "shapes": "shapes",
    "checks": "checks",
    "control": "control flow",
}


@cache
def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _script_json(data: Any) -> str:
    """JSON that cannot end the script element it lies in."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def postfix(size: Size) -> Any:
    """A size for the script: a number, null, or a postfix program."""
    if size is None or isinstance(size, int):
        return size
    out: list[Any] = []
    _append_postfix(size, out)
    return out


def _append_postfix(size: int | PrimExpr, out: list[Any]) -> None:
    if isinstance(size, int):
        out.append(size)
    elif isinstance(size, SymVar):
        out.append(f"${size.name}")
    elif isinstance(size, (FloorDiv, FloorMod)):
        _append_postfix(size.a, out)
        _append_postfix(size.b, out)
        out.append("/" if isinstance(size, FloorDiv) else "%")
    elif isinstance(size, Extremum):
        for i, arg in enumerate(size.args):
            _append_postfix(arg, out)
            if i:
                out.append(size.kind)
    else:
        assert isinstance(size, Poly)
        for i, (mono, coeff) in enumerate(size.terms.items()):
            out.append(coeff)
            for atom, power in mono:
                for _ in range(power):
                    _append_postfix(atom, out)
                    out.append("*")
            if i:
                out.append("+")


_FORMS: dict[str, Callable[[int], str]] = {
    "bytes": bytes_text,
    "count": lambda n: count_text(n).strip(),
    "plain": str,
}


class _Page:
    def __init__(self, explanation: Explanation) -> None:
        self.explanation = explanation
        self.dims = _assumed(explanation)
        for function in explanation.functions:
            self.dims = function.resolved(self.dims)
        for function in explanation.functions:
            self.dims = function.resolved(self.dims)
        self.timed = explanation.profile_ns is not None

    # ---- pieces

    def number(self, size: Size, form: str) -> str:
        """A size as text; one that depends on symbols follows the inputs at the top of the page."""
        value = sizes.number(size, self.dims)
        text = "?" if value is None else _FORMS[form](value)
        if size is None or isinstance(size, int):
            return text
        return f'<span data-x="{esc(json.dumps(postfix(size)))}" data-f="{form}" title="{esc(size)}">{text}</span>'

    def cell(self, size: Size, form: str) -> str:
        """A table cell with a size, to sort by."""
        value = sizes.number(size, self.dims)
        text = (
            "" if size == 0 else "?" if value is None else bytes_text(value) if form == "bytes" else count_text(value)
        )
        attributes = f'data-v="{"" if value is None else value}"'
        if isinstance(size, PrimExpr):
            attributes += f' data-x="{esc(json.dumps(postfix(size)))}" data-f="{form}" title="{esc(size)}"'
        return f'<td class="num" {attributes}>{text}</td>'

    def card(self, value: str, label: str) -> str:
        return f'<div class="card"><b>{value}</b><span>{label}</span></div>'

    # ---- the page

    def render(self) -> str:
        e = self.explanation
        script = _asset("page.js")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
        plans = [[p.names, list(p.table), [postfix(size) for size in p.sizes]] for f in e.functions for p in f.plans]
        sections = [self.function(f, index) for index, f in enumerate(e.functions)]
        links = [
            [i.pc, sorted({b for o in i.inputs for b in o.buffers}), sorted({b for o in i.outputs for b in o.buffers})]
            for f in e.functions
            for i in f.instructions
            if any(o.buffers for o in i.operands)
        ]
        plans = [[p.names, list(p.table), [postfix(size) for size in p.sizes]] for f in e.functions for p in f.plans]
        tabs = ""
        if len(e.functions) > 1:
            items = "".join(f'<a href="#f{i}">@{esc(f.name)}</a>' for i, f in enumerate(e.functions))
            tabs = f'<nav class="tabs" aria-label="functions">{items}</nav>'
        inputs = self.dim_inputs()
        bar = tabs or inputs
        return "".join(
            [
                '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
                f'<meta http-equiv="Content-Security-Policy" content="{esc(policy)}">',
                '<meta name="viewport" content="width=device-width,initial-scale=1">',
                f"<title>{esc(e.name)}, explained</title><style>{_asset('page.css')}</style></head><body>",
                f'<header><div class="bar-in"><div class="grow"><h1>{esc(e.name)}</h1><div class="sub">',
                self.subtitle(),
                '</div></div><button id="theme" type="button" aria-label="light or dark">◐</button>',
                "</div></header>",
                f'<div class="sticky"><div class="bar-in">{tabs}<div class="grow"></div>{inputs}</div></div>'
                * bool(bar),
                "<main>",
                f'<p class="problem">This program does not verify: {esc(e.problem)}</p>' if e.problem else "",
                *sections,
                self.footer(),
                f'</main><div id="tip" hidden></div><script type="application/json" id="links">{_script_json(links)}',
                f'</script><script type="application/json" id="plans">{_script_json(plans)}',
                f"</script><script>{script}</script></body></html>\n",
            ]
        )

    def subtitle(self) -> str:
        e = self.explanation
        n = sum(len(f.instructions) for f in e.functions)
        parts = [f"{len(e.functions)} function{'s' * (len(e.functions) != 1)}", f"{n} instructions"]
        parts.append(f"{bytes_text(e.constants_bytes)} of constants")
        if e.profile_ns is not None:
            parts.append(f"profiled: @{esc(e.profiled)} in {time_text(e.profile_ns)}, profiler included")
        return " · ".join(parts)

    def dim_inputs(self) -> str:
        names = self.explanation.symbols
        if not names:
            return ""
        given = self.explanation.dims
        title = "symbolic dimensions, as measured" if self.timed else "symbolic dimensions: change them"
        fields = "".join(
            f'<label><span class="mono">{esc(name)}</span><input type="number" min="0" step="1" name="{esc(name)}" '
            f'value="{self.dims[name]}" autocomplete="off"{" disabled" * self.timed}></label>'
            for name in names[:24]
        )
        hidden = "".join(f'<input type="hidden" name="{esc(name)}" value="{self.dims[name]}">' for name in names[24:])
        assumed = "" if all(name in given for name in names) else '<span class="note">sizes for</span>'
        return f'<div class="dims" title="{title}">{assumed}{fields}{hidden}</div>'

    def footer(self) -> str:
        others = self.explanation.others
        listed = ""
        if others:
            names = ", ".join(f"<code>{esc(name)}</code>" for name, _ in others[:200])
            listed = f"<p>Functions from outside: {names}{' …' if len(others) > 200 else ''}</p>"
        return (
            "<footer>" + listed + "<p>Arithmetic is that of the formula: a multiply-add counts two, a transcendental "
            "function one. Bytes moved are the least there can be: each operand read once, each result written once; "
            "caches move more or less. An instruction in a loop or a branch counts once.</p></footer>"
        )

    # ---- one function

    def function(self, f: FunctionExplanation, index: int) -> str:
        totals = f.totals()
        params = ", ".join(f"{esc(name)}: {esc(value)}" for name, value in f.params)
        out = [f'<section class="function" id="f{index}"><h2><code>@{esc(f.name)}</code></h2>']
        out.append(f'<div class="signature mono">({params}) → {esc(f.results)}</div>')
        if f.approximate:
            out.append('<p class="note">This function is too entangled to follow: less is known than could be.</p>')
        out.append(self.cards(f, totals))
        out.append(self.kinds(f))
        if self.timed:
            from .roofline import svg

            picture = svg(self.explanation, f, self.dims)
            if picture:
                out.append(
                    f"<h2>Roofline<small>measured rates by arithmetic intensity</small></h2>"
                    f'<div class="panel scroll">{picture}</div>'
                )
        if f.storages or f.buffers:
            out.append(self.memory(f, index))
        picture, left_out = graph_picture.svg(f, f"{index}")
        note = f'<p class="note">The first nodes; {left_out} more are left out.</p>' if left_out else ""
        zooms = "".join(
            f'<button type="button" data-zoom="{how}" title="{title}">{label}</button>'
            for how, title, label in (
                ("0.8", "smaller", "−"),
                ("1.25", "larger", "+"),
                ("fit", "as wide as the frame", "fit"),
                ("all", "all of it", "all"),
            )
        )
        out.append(
            f"<h2>Graph<small>what feeds what; drag to move, Ctrl + wheel to zoom</small></h2>{note}"
            f'<div class="legend">{self.legend(f)}<span class="tools">{zooms}</span></div>'
            f'<div class="canvas">{picture}</div>'
        )
        out.append(self.table(f, totals))
        out.append("</section>")
        return "".join(out)

    def cards(self, f: FunctionExplanation, totals: Totals) -> str:
        cards = [self.card(f"{len(f.instructions)}", "instructions")]
        label = "FLOP" + (f", and {totals.flops_unknown} unknown" if totals.flops_unknown else "")
        cards.append(self.card(self.number(totals.flops, "count"), label))
        if totals.macs != 0:
            cards.append(self.card(self.number(totals.macs, "count"), "multiply-adds in products"))
        moved = sizes.add(totals.bytes_read, totals.bytes_written)
        label = "moved" + (f", and {totals.bytes_unknown} unknown" if totals.bytes_unknown else "")
        cards.append(self.card(self.number(moved, "bytes"), label))
        if totals.self_ns is not None:
            cards.append(self.card(time_text(totals.self_ns), "in its instructions"))
            flops = sizes.number(totals.flops, self.dims)
            if flops and totals.self_ns:
                cards.append(self.card(f"{flops / totals.self_ns:.3g}", "GFLOP/s"))
        figures = f.memory(self.dims)
        if figures.arena_bytes:
            cards.append(self.card(f'<span data-m="arena">{bytes_text(figures.arena_bytes)}</span>', "arena"))
        elif figures.peak_bytes or f.symbols and f.storages:
            cards.append(
                self.card(f'<span data-m="peak">{bytes_text(figures.peak_bytes)}</span>', "memory at its peak")
            )
        return f'<div class="cards">{"".join(cards)}</div>'

    def kinds(self, f: FunctionExplanation) -> str:
        """Where the work is: sums by kernel."""
        sums: dict[tuple[str, str], list[Any]] = {}
        for i in f.instructions:
            if i.is_work:
                row = sums.setdefault((i.kernel, i.category), [0, 0, 0, 0])
                row[0] += 1
                row[1] = sizes.add(row[1], i.flops)
                row[2] = sizes.add(row[2], i.bytes_moved)
                row[3] += i.self_ns or 0
        if not sums:
            return ""
        numbers = {
            key: [sizes.number(row[1], self.dims) or 0, sizes.number(row[2], self.dims) or 0, row[3]]
            for key, row in sums.items()
        }
        whole = [max(sum(row[c] for row in numbers.values()), 1) for c in range(3)]
        first = 2 if self.timed else 0
        order = sorted(sums, key=lambda key: (-numbers[key][first], -numbers[key][1]))
        rows = []
        for key in order[:14]:
            kernel, category = key
            count, flops, moved, ns = sums[key]
            cells = [f'<td><i class="chip k-{category}"></i>{esc(kernel)}</td><td class="num">{count}</td>']
            if self.timed:
                cells.append(self.meter(None, ns, 100 * ns / whole[2], "time", time_text(ns), category))
            for size, c, form, column in ((flops, 0, "count", "flops"), (moved, 1, "bytes", "bytes")):
                share = 100 * numbers[key][c] / whole[c]
                text = self.number(size, form)
                cells.append(self.meter(size, numbers[key][c], share, column, text, category))
            rows.append(f"<tr>{''.join(cells)}</tr>")
        more = f'<p class="note">and {len(order) - 14} more kinds</p>' if len(order) > 14 else ""
        time_head = "<th colspan=2>time</th>" if self.timed else ""
        return (
            '<h2>Where the work is</h2><div class="panel scroll"><table class="kinds"><thead><tr><th>what</th>'
            f'<th class="num">count</th>{time_head}<th colspan=2>FLOP</th><th colspan=2>bytes moved</th></tr></thead>'
            f"<tbody>{''.join(rows)}</tbody></table>{more}</div>"
        )

    @staticmethod
    def meter(size: Size, value: float, share: float, column: str, text: str, category: str) -> str:
        code = f' data-x="{esc(json.dumps(postfix(size)))}"' if isinstance(size, PrimExpr) else ""
        return (
            f'<td class="m"><span class="meter" data-c="{column}" data-v="{value}"{code}><i class="k-{category}" '
            f'style="width:{share:.1f}%"></i></span></td><td class="num">{text}</td>'
        )

    def legend(self, f: FunctionExplanation) -> str:
        present = {i.category for i in f.instructions if i.is_work or i.opcode in ("if", "ret", "goto")}
        present |= {buffer.category for buffer in f.buffers.values()}
        return "".join(
            f'<span><i class="k-{category}"></i>{label}</span>'
            for category, label in _SHOWN_CATEGORIES.items()
            if category in present
        )

    def memory(self, f: FunctionExplanation, index: int) -> str:
        figures = f.memory(self.dims)
        plan = {
            "begin": f.begin,
            "end": f.end,
            "storages": [
                [s.id, s.kind, s.spans, postfix(s.nbytes)]
                for s in sorted(f.storages.values(), key=lambda s: (s.kind != "arena", s.begin))
            ],
            "buffers": [
                [b.id, b.storages[0], b.spans, postfix(b.offset), postfix(b.nbytes), b.kernel or "tensor"]
                for b in list(f.buffers.values())[:20_000]
                if len(b.storages) == 1 and b.storages[0] in f.storages
            ],
        }
        text = []
        if figures.arena_bytes or (f.symbols and any(s.kind == "arena" for s in f.storages.values())):
            ratio = f"{figures.ratio:.3f} ×" if figures.ratio is not None else "–"
            text.append(
                f'The arena takes <b data-m="arena">{bytes_text(figures.arena_bytes)}</b>; at most '
                f'<b data-m="bound">{bytes_text(figures.arena_lower_bound)}</b> are alive in it at one time, below '
                f'which no plan can be: <b data-m="ratio">{ratio}</b> of that.'
            )
        if any(s.kind != "arena" for s in f.storages.values()):
            text.append(
                f'With what is allocated at run time at most <b data-m="peak">{bytes_text(figures.peak_bytes)}</b> are '
                f'held at one time, <b data-m="alive">{bytes_text(figures.lower_bound)}</b> of them alive.'
            )
        n_tensors = f"{len(f.buffers)} tensor{'s' * (len(f.buffers) != 1)}"
        text.append(f'Without reuse: <b data-m="separate">{bytes_text(figures.without_reuse)}</b> in {n_tensors}.')
        if figures.unknown:
            text.append(f"{figures.unknown} storages of unknown size are left out.")
        picture = memory_picture.svg(f, self.dims, f"{index}")
        return (
            f"<h2>Memory plan<small>time × address: a rectangle is a tensor while its contents matter</small></h2>"
            f'<p>{" ".join(text)}</p><div class="legend">{self.legend(f)}<span class="tools">'
            '<button type="button" data-memory="0.5" title="less time">−</button>'
            '<button type="button" data-memory="2" title="more time">+</button></span></div>'
            f'<div class="panel scroll">{picture}</div>'
            f'<script type="application/json" class="plan">{_script_json(plan)}</script>'
        )

    def table(self, f: FunctionExplanation, totals: Totals) -> str:
        heads = [
            '<th class="num">pc</th>',
            "<th>what, and from what</th>",
            "<th>result</th>",
            '<th class="num">FLOP</th>',
            '<th class="num">moved</th>',
        ]
        if not self.timed:
            heads.append('<th class="num" title="FLOP per byte moved">FLOP/B</th>')
        else:
            heads += [
                '<th class="num">time</th>',
                '<th class="num">share</th>',
                '<th class="num">GFLOP/s</th>',
                '<th class="num">GB/s</th>',
            ]
        heads += ["<th>memory</th>", "<th>why</th>"]
        heads = [head.replace("<th", '<th tabindex="0"', 1) for head in heads]
        rows = [self.row(f, i, totals, len(heads)) for i in f.instructions[:MAX_ROWS]]
        left_out = len(f.instructions) - MAX_ROWS
        note = f'<p class="note">The first {MAX_ROWS}; {left_out} more are left out.</p>' if left_out > 0 else ""
        return (
            f"<h2>Instructions<small>click one for its operands and reasons, a title to sort</small></h2>{note}"
            '<p class="filter"><input class="search" type="search" placeholder="filter: conv 1x1 relu" size="32"> '
            '<label><input class="work" type="checkbox" checked> only what computes</label> '
            '<span class="note shown"></span></p><div class="panel rows"><table class="list"><thead><tr>'
            f"{''.join(heads)}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        )

    def row(self, f: FunctionExplanation, i: Instruction, totals: Totals, n_columns: int) -> str:
        moved = i.bytes_moved
        intensity = None
        flops_number, moved_number = sizes.number(i.flops, self.dims), sizes.number(moved, self.dims)
        if flops_number and moved_number:
            intensity = flops_number / moved_number
        cells = [
            f'<td class="num" data-v="{i.pc}">{i.pc}</td>',
            f'<td class="what"><i class="chip k-{i.category}"></i><b>{esc(graph_picture.title(i))}</b>'
            + (f'<span class="note">{esc(_cut(i.source, 120))}</span>' if i.source else "")
            + "</td>",
            f'<td class="shape">{self.result(i)}</td>',
            self.cell(i.flops, "count"),
            self.cell(moved, "bytes"),
        ]
        if self.timed:
            cells += self.times(i, totals)
        else:
            cells.append(
                f'<td class="num" data-v="{"" if intensity is None else f"{intensity:.6g}"}">'
                f"{'' if intensity is None else f'{intensity:.3g}'}</td>"
            )
        cells += [
            f'<td class="shape">{self.where(f, i)}</td>',
            f'<td class="why">{esc(_cut("; ".join(i.why), 150))}</td>',
        ]
        quiet = "" if i.is_work or i.opcode == "ret" else " quiet"
        return (
            f'<tr class="i{quiet}" data-pc="{i.pc}">{"".join(cells)}</tr>'
            f'<tr class="more" hidden><td colspan="{n_columns}">{self.more(f, i)}</td></tr>'
        )

    @staticmethod
    def result(i: Instruction) -> str:
        texts = [f"{o.dtype or '?'} {shape_text(o.shape)}" for o in i.outputs]
        if not texts and i.opcode == "ret" and i.operands:
            texts = [i.operands[0].text]
        elif not texts and i.result not in ("", "None"):
            texts = [i.result]
        return "<br>".join(f'<span class="one">{esc(t)}</span>' if len(t) < 44 else esc(t) for t in texts)

    def times(self, i: Instruction, totals: Totals) -> list[str]:
        if i.self_ns is None:
            return ['<td class="num" data-v=""></td>'] * 4
        share = 100 * i.self_ns / totals.self_ns if totals.self_ns else 0.0
        cells = [
            f'<td class="num" data-v="{i.self_ns}">{time_text(i.self_ns)}</td>',
            f'<td class="num" data-v="{share:.4f}">{share:.1f}%</td>',
        ]
        for size in (i.flops, i.bytes_moved):
            number = sizes.number(size, self.dims)
            rate = number * i.calls / i.self_ns if number and i.self_ns else None
            cells.append(
                f'<td class="num" data-v="{"" if rate is None else f"{rate:.6g}"}">'
                f"{'' if rate is None else f'{rate:.3g}'}</td>"
            )
        return cells

    def where(self, f: FunctionExplanation, i: Instruction) -> str:
        """The memory of the result: storage, address, lifetime."""
        ids = i.allocates or sorted({b for o in i.outputs for b in o.buffers})
        if len(ids) != 1 or ids[0] not in f.buffers:
            return ""
        b = f.buffers[ids[0]]
        storage = f.storages.get(b.storages[0]) if len(b.storages) == 1 else None
        place = "elsewhere" if storage is None else "arena" if storage.kind == "arena" else f"storage {storage.id}"
        offset = ""
        if isinstance(b.offset, PrimExpr):
            offset = " + " + self.number(b.offset, "plain")
        elif b.offset or place == "arena":
            offset = " + " + ("?" if b.offset is None else str(b.offset))
        return f"<span class=at>{esc(place)}{offset}</span><br><span class=note>alive {b.begin}–{b.end}</span>"

    def more(self, f: FunctionExplanation, i: Instruction) -> str:
        out = [f'<div class="text">{esc(i.text)}</div>']
        if i.source:
            out.append(f'<div class="note">from {esc(i.source)}</div>')
        if i.why:
            out.append("<ul>" + "".join(f"<li>{esc(reason)}</li>" for reason in i.why) + "</ul>")
        shown = [o for o in i.operands if o.name or o.text]
        if shown:
            rows = "".join(self.operand(f, o) for o in shown[:200])
            out.append(
                f"<table><tr><th>operand</th><th></th><th>value</th><th>bytes</th><th>lies in</th></tr>{rows}</table>"
            )
        facts = []
        for label, size, form in (
            ("FLOP", i.flops, "count"),
            ("read", i.bytes_read, "bytes"),
            ("written", i.bytes_written, "bytes"),
        ):
            if size != 0 and i.is_work:
                expression = f" = <code>{esc(size)}</code>" if isinstance(size, PrimExpr) else ""
                facts.append(f"{label} {self.number(size, form)}{expression}")
        if i.self_ns is not None:
            rate = rate_text(i, Explanation("", [], [], self.dims, 0, 0, {}))
            facts.append(
                f"{time_text(i.self_ns)} in {i.calls} call{'s' * (i.calls != 1)}" + (f", {rate}" if rate else "")
            )
        if facts:
            out.append(f'<div class="note">{" · ".join(facts)}</div>')
        for label, pcs in (("reads what these computed", i.fed_by), ("read by", i.feeds)):
            if pcs:
                named = ", ".join(self.link(f, pc) for pc in pcs[:24]) + (" …" if len(pcs) > 24 else "")
                out.append(f'<div class="note">{label}: {named}</div>')
        if i.ends or i.releases:
            ended = ", ".join(f"{esc(f.buffers[b].kernel or 'tensor')} of {b}" for b in i.ends if b in f.buffers)
            if ended:
                out.append(f'<div class="note">last use of {ended}</div>')
            if i.releases:
                out.append(f'<div class="note">gives back storage {", ".join(map(str, i.releases))}</div>')
        return "".join(out)

    @staticmethod
    def link(f: FunctionExplanation, pc: int) -> str:
        if pc < 0:
            return esc(f.params[-1 - pc][0]) if -1 - pc < len(f.params) else "?"
        if f.begin <= pc < f.end:
            return f'<a class="pc" href="#" data-go="{pc}">{pc} {esc(f.instruction(pc).kernel)}</a>'
        return str(pc)

    def operand(self, f: FunctionExplanation, o: Operand) -> str:
        value = esc(f"{o.dtype or '?'} {shape_text(o.shape)}" if o.dtype or o.shape is not None else o.text)
        nbytes = self.number(o.nbytes, "bytes") if o.nbytes is not None else ""
        places = []
        for id in o.buffers[:4]:
            b = f.buffers.get(id)
            if b is not None:
                places.append(f"{esc(b.kernel or 'tensor')} of {id}")
        role = {"input": "in", "output": "out"}.get(o.role, "")
        return (
            f'<tr><td>{esc(o.name)}</td><td class="note">{role}</td><td class="mono">{value}</td>'
            f'<td class="num">{nbytes}</td><td class="note">{esc(o.where)}{" · " if places else ""}'
            f"{', '.join(places)}</td></tr>"
        )


def _cut(text: str, n: int) -> str:
    return text if len(text) <= n else text[: n - 1] + "…"


def _assumed(explanation: Explanation) -> dict[str, int]:
    """Values for all symbols."""
    given = explanation.dims
    results = [{name: value for name in explanation.symbols} | given for value in _ASSUMED]
    parts = [
        size for f in explanation.functions for b in f.buffers.values() for size in (b.shape or ()) if size is not None
    ]
    for dims in results:
        if all(sizes.number(size, dims) is not None for size in parts if not isinstance(size, int)):
            return dims
    return results[0]


def as_html(explanation: Explanation) -> str:
    """The page."""
    return _Page(explanation).render()
