#pragma once
#include <stddef.h>
#include <stdint.h>

/// CRC-32C (Castagnoli, RFC 3720 B.4) of `length` bytes, continuing from `seed`, the result of an earlier call or 0.
/// Uses the processor's instruction where there is one.
uint32_t clinux_crc32c(uint32_t seed, const void *bytes, size_t length);

/// The same by table, on any processor; for comparison in tests.
uint32_t clinux_crc32c_portable(uint32_t seed, const void *bytes, size_t length);

/// SipHash-2-4 with 128 bits of output (Aumasson and Bernstein, 2012): `out[0]` is the low half.
void clinux_siphash128(uint64_t key0, uint64_t key1, const void *bytes, size_t length, uint64_t out[2]);
