/* CRC-32 of zlib and PNG (polynomial 0xEDB88320), eight bytes a step. Included by verify.pyx alone. */
#ifndef VMCORE_CHECKSUM_H
#define VMCORE_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

static uint32_t crc32_tables[8][256]; /* [i][b]: what byte b adds, with i more bytes to come */

/* Before the first crc32_update. Two threads that do this at once write the same. */
static void crc32_init(void) {
  if (crc32_tables[7][255]) return;
  for (uint32_t b = 0; b < 256; b++) {
    uint32_t crc = b;
    for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
    crc32_tables[0][b] = crc;
  }
  for (int i = 1; i < 8; i++)
    for (int b = 0; b < 256; b++) {
      uint32_t crc = crc32_tables[i - 1][b];
      crc32_tables[i][b] = crc >> 8 ^ crc32_tables[0][crc & 255];
    }
}

/* The checksum of the bytes before, whose own is `crc` (0 if there are none), and of these. */
static uint32_t crc32_update(uint32_t crc, const uint8_t *data, size_t n) {
  crc = ~crc;
  for (; n >= 8; n -= 8, data += 8) {
    crc ^= data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 | (uint32_t)data[3] << 24;
    crc = crc32_tables[7][crc & 255] ^ crc32_tables[6][crc >> 8 & 255] ^ crc32_tables[5][crc >> 16 & 255] ^
          crc32_tables[4][crc >> 24] ^ crc32_tables[3][data[4]] ^ crc32_tables[2][data[5]] ^
          crc32_tables[1][data[6]] ^ crc32_tables[0][data[7]];
  }
  for (; n; n--, data++) crc = crc >> 8 ^ crc32_tables[0][(crc ^ *data) & 255];
  return ~crc;
}

#endif
