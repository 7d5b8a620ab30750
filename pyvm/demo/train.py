"""Trains the digit classifier of the demo with numpy and scipy alone: `python -m pyvm.demo.train [weights.npz]`.

Network: conv 3x3 (1 to 24) - relu - max pool 2 - conv 3x3 (24 to 48) - relu - max pool 2 - linear (192 to 10).
Trained with Adam on the cross entropy of slightly shifted, turned and scaled copies of the training images. All
randomness comes from one seed, so the same versions on the same machine give the same weights.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from scipy.ndimage import map_coordinates

from pyvm.demo import Digits, load_digits

Params = dict[str, np.ndarray]

EPOCHS = 160
BATCH = 32
RATE = 2e-3
WEIGHT_DECAY = 1e-2
SEED = 1998


def init_params(rng: np.random.Generator) -> Params:
    """He initialisation; biases are zero."""

    def normal(*shape: int) -> np.ndarray:
        fan_in = int(np.prod(shape[1:]))
        return (rng.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(np.float32)

    return {
        "conv1.w": normal(24, 1, 3, 3),
        "conv1.b": np.zeros(24, np.float32),
        "conv2.w": normal(48, 24, 3, 3),
        "conv2.b": np.zeros(48, np.float32),
        "fc.w": normal(10, 192),
        "fc.b": np.zeros(10, np.float32),
    }


def _patches(x: np.ndarray) -> np.ndarray:
    """All 3x3 patches of x (n, c, h, w) with one zero around it: (n, h, w, c * 9)."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    n, c, h, w = x.shape
    return windows.transpose(0, 2, 3, 1, 4, 5).reshape(n, h, w, c * 9)


def _conv(patches: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Convolution of the image behind `patches`: (n, out channels, h, w)."""
    return (patches @ weight.reshape(len(weight), -1).T + bias).transpose(0, 3, 1, 2)


def _pool(x: np.ndarray) -> np.ndarray:
    """Largest of each 2x2 block."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).max(axis=(3, 5))


def _pool_grad(x: np.ndarray, pooled: np.ndarray, grad: np.ndarray) -> np.ndarray:
    """Gradient with respect to x: each block's share goes to its largest elements, divided between equal ones."""
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // 2, 2, w // 2, 2)
    winners = blocks == pooled[:, :, :, None, :, None]
    shares = winners / winners.sum(axis=(3, 5), keepdims=True)
    return (shares * grad[:, :, :, None, :, None]).reshape(x.shape).astype(x.dtype)


def forward(params: Params, images: np.ndarray) -> np.ndarray:
    """Class probabilities (n, 10) of images (n, 1, 8, 8)."""
    return _forward(params, images)[0]


def _forward(params: Params, images: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    patches1 = _patches(images)
    conv1 = np.maximum(_conv(patches1, params["conv1.w"], params["conv1.b"]), 0)
    pool1 = _pool(conv1)
    patches2 = _patches(pool1)
    conv2 = np.maximum(_conv(patches2, params["conv2.w"], params["conv2.b"]), 0)
    pool2 = _pool(conv2)
    flat = pool2.reshape(len(images), -1)
    scores = flat @ params["fc.w"].T + params["fc.b"]
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities = scores / scores.sum(axis=1, keepdims=True)
    return probabilities, (patches1, conv1, pool1, patches2, conv2, pool2, flat)


def loss_and_grads(params: Params, images: np.ndarray, labels: np.ndarray) -> tuple[float, Params]:
    """Mean cross entropy over a batch and its gradient with respect to each parameter."""
    probabilities, (patches1, conv1, pool1, patches2, conv2, pool2, flat) = _forward(params, images)
    n = len(images)
    rows = np.arange(n)
    loss = -np.log(probabilities[rows, labels] + 1e-12).mean()

    d_scores = probabilities.copy()
    d_scores[rows, labels] -= 1
    d_scores /= n
    grads = {"fc.w": d_scores.T @ flat, "fc.b": d_scores.sum(axis=0)}

    d_pool2 = (d_scores @ params["fc.w"]).reshape(pool2.shape)
    d_conv2 = _pool_grad(conv2, pool2, d_pool2) * (conv2 > 0)
    grads["conv2.w"] = np.einsum("nohw,nhwk->ok", d_conv2, patches2, optimize=True).reshape(params["conv2.w"].shape)
    grads["conv2.b"] = d_conv2.sum(axis=(0, 2, 3))

    # The gradient of a padded 3x3 convolution is one with the kernel turned by 180 degrees and channels swapped.
    turned = np.ascontiguousarray(params["conv2.w"][:, :, ::-1, ::-1].transpose(1, 0, 2, 3))
    d_pool1 = _conv(_patches(d_conv2), turned, np.zeros(len(turned), d_conv2.dtype))
    d_conv1 = _pool_grad(conv1, pool1, d_pool1) * (conv1 > 0)
    grads["conv1.w"] = np.einsum("nohw,nhwk->ok", d_conv1, patches1, optimize=True).reshape(params["conv1.w"].shape)
    grads["conv1.b"] = d_conv1.sum(axis=(0, 2, 3))
    return float(loss), grads


def augment(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each image shifted by up to 0.5 pixels, turned by up to 8 degrees and scaled by up to 8 percent."""
    n, _, height, width = images.shape
    angle = rng.uniform(-8, 8, n) * np.pi / 180
    scale = rng.uniform(0.92, 1.08, n)
    shift = rng.uniform(-0.5, 0.5, (2, n))
    row, column = np.meshgrid(np.arange(height) - 3.5, np.arange(width) - 3.5, indexing="ij")
    cos, sin = (np.cos(angle) * scale)[:, None, None], (np.sin(angle) * scale)[:, None, None]
    rows = cos * row - sin * column + 3.5 + shift[0, :, None, None]
    columns = sin * row + cos * column + 3.5 + shift[1, :, None, None]
    which = np.broadcast_to(np.arange(n)[:, None, None], rows.shape)
    moved = map_coordinates(images[:, 0], (which, rows, columns), order=1, mode="constant")
    return moved[:, None].astype(np.float32)


def train(data: Digits, epochs: int = EPOCHS, seed: int = SEED, verbose: bool = False) -> Params:
    """Parameters after `epochs` passes over the data, with a learning rate that falls to zero along a cosine."""
    rng = np.random.default_rng(seed)
    params = init_params(rng)
    first = {name: np.zeros_like(value) for name, value in params.items()}
    second = {name: np.zeros_like(value) for name, value in params.items()}
    n_steps = epochs * (len(data.images) // BATCH)
    step = 0
    for epoch in range(epochs):
        order = rng.permutation(len(data.images))
        images, losses = augment(data.images, rng), []
        for begin in range(0, len(order) - BATCH + 1, BATCH):
            batch = order[begin : begin + BATCH]
            loss, grads = loss_and_grads(params, images[batch], data.labels[batch])
            losses.append(loss)
            step += 1
            rate = RATE * (1 + np.cos(np.pi * step / n_steps)) / 2
            for name, grad in grads.items():
                first[name] += 0.1 * (grad - first[name])
                second[name] += 0.001 * (grad * grad - second[name])
                update = (first[name] / (1 - 0.9**step)) / (np.sqrt(second[name] / (1 - 0.999**step)) + 1e-8)
                params[name] -= (rate * (update + WEIGHT_DECAY * params[name])).astype(np.float32)
        if verbose:
            print(f"epoch {epoch + 1:3d}/{epochs}: loss {np.mean(losses):.4f}", flush=True)
    return params


def accuracy(params: Params, data: Digits) -> float:
    """Share of the images whose most probable class is the label."""
    return float((forward(params, data.images).argmax(axis=1) == data.labels).mean())


def main() -> None:
    """Train, report, and write the weights to the path given, else beside this file."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("weights.npz")
    training, held_out = load_digits()
    params = train(training, verbose=True)
    print(f"training images: {accuracy(params, training):.2%}, held-out images: {accuracy(params, held_out):.2%}")
    np.savez_compressed(path, allow_pickle=False, **params)
    print(f"wrote {path} ({path.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
