#include "include/crc32c.h"

#include <stdatomic.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

static uint32_t table[256];
static atomic_int table_is_ready;

static void make_table(void) {
    // Several threads may do this at once: all of them store the same values.
    for (uint32_t index = 0; index < 256; index++) {
        uint32_t remainder = index;
        for (int bit = 0; bit < 8; bit++) remainder = (remainder >> 1) ^ (0x82f63b78u & (0u - (remainder & 1)));
        __atomic_store_n(&table[index], remainder, __ATOMIC_RELAXED);
    }
    atomic_store_explicit(&table_is_ready, 1, memory_order_release);
}

uint32_t clinux_crc32c_portable(uint32_t seed, const void *bytes, size_t length) {
    if (!atomic_load_explicit(&table_is_ready, memory_order_acquire)) make_table();
    const uint8_t *next = bytes;
    uint32_t crc = ~seed;
    while (length--) crc = (crc >> 8) ^ __atomic_load_n(&table[(crc ^ *next++) & 0xff], __ATOMIC_RELAXED);
    return ~crc;
}

#if defined(__x86_64__)
// The instruction takes a new word in each cycle but answers after three: three parts of a block are computed side by
// side, and joined by a table that says what a checksum becomes when a part's length of zeros follows it.
enum { PART_BYTES = 1360, PART_WORDS = PART_BYTES / 8 };

static uint32_t shift_table[4][256];
static atomic_int shift_table_is_ready;

__attribute__((target("sse4.2"))) static void make_shift_table(void) {
    uint32_t one_bit[32];
    for (int bit = 0; bit < 32; bit++) {
        uint64_t crc = (uint32_t)1 << bit;
        for (int word = 0; word < PART_WORDS; word++) crc = __builtin_ia32_crc32di(crc, 0);
        one_bit[bit] = (uint32_t)crc;
    }
    // The shift is linear: what a byte becomes is the sum of what its bits become. Several threads store the same.
    for (int byte = 0; byte < 4; byte++) {
        for (int value = 0; value < 256; value++) {
            uint32_t sum = 0;
            for (int bit = 0; bit < 8; bit++) sum ^= value >> bit & 1 ? one_bit[8 * byte + bit] : 0;
            __atomic_store_n(&shift_table[byte][value], sum, __ATOMIC_RELAXED);
        }
    }
    atomic_store_explicit(&shift_table_is_ready, 1, memory_order_release);
}

static inline uint32_t shifted(uint64_t crc) {
    return __atomic_load_n(&shift_table[0][crc & 0xff], __ATOMIC_RELAXED) ^
           __atomic_load_n(&shift_table[1][crc >> 8 & 0xff], __ATOMIC_RELAXED) ^
           __atomic_load_n(&shift_table[2][crc >> 16 & 0xff], __ATOMIC_RELAXED) ^
           __atomic_load_n(&shift_table[3][crc >> 24 & 0xff], __ATOMIC_RELAXED);
}

__attribute__((target("sse4.2"))) static uint32_t crc32c_sse42(uint32_t seed, const void *bytes, size_t length) {
    const uint8_t *next = bytes;
    uint64_t crc = (uint32_t)~seed;
    if (length >= 3 * PART_BYTES && !atomic_load_explicit(&shift_table_is_ready, memory_order_acquire))
        make_shift_table();
    for (; length >= 3 * PART_BYTES; length -= 3 * PART_BYTES, next += 3 * PART_BYTES) {
        uint64_t second = 0, third = 0;
        for (const uint8_t *end = next + PART_BYTES, *at = next; at < end; at += 8) {
            uint64_t words[3];
            memcpy(&words[0], at, 8);
            memcpy(&words[1], at + PART_BYTES, 8);
            memcpy(&words[2], at + 2 * PART_BYTES, 8);
            crc = __builtin_ia32_crc32di(crc, words[0]);
            second = __builtin_ia32_crc32di(second, words[1]);
            third = __builtin_ia32_crc32di(third, words[2]);
        }
        crc = shifted(shifted(crc) ^ second) ^ third;
    }
    for (; length >= 8; length -= 8, next += 8) {
        uint64_t word;
        memcpy(&word, next, 8);
        crc = __builtin_ia32_crc32di(crc, word);
    }
    for (; length > 0; length--) crc = __builtin_ia32_crc32qi((uint32_t)crc, *next++);
    return ~(uint32_t)crc;
}

// Carry-less multiplication moves 128 bits at a time to where they are congruent, D bits further on. In the bit order
// of this checksum the product of two reflected 64-bit polynomials comes out multiplied by x, so the half that comes
// first is multiplied by x^(D+63) mod P and the other one by x^(D-1) mod P, each reflected into the upper half of a
// word.
#define FOLD_512_FIRST ((long long)(0x1c19243bull << 32))
#define FOLD_512_SECOND ((long long)(0x75bba45bull << 32))
#define FOLD_2048_FIRST ((long long)(0xe9a5d8beull << 32))
#define FOLD_2048_SECOND ((long long)(0x1426a815ull << 32))

__attribute__((target("avx512f,vpclmulqdq"))) static inline __m512i folded(__m512i sum, __m512i by, __m512i next) {
    __m512i first = _mm512_clmulepi64_epi128(sum, by, 0x00);
    __m512i second = _mm512_clmulepi64_epi128(sum, by, 0x11);
    return _mm512_xor_si512(_mm512_xor_si512(first, second), next);
}

__attribute__((target("avx512f,vpclmulqdq,sse4.2"))) static uint32_t crc32c_avx512(
    uint32_t seed, const void *bytes, size_t length) {
    const uint8_t *next = bytes;
    if (length < 256) return crc32c_sse42(seed, bytes, length);
    const __m512i far = _mm512_set4_epi64(FOLD_2048_SECOND, FOLD_2048_FIRST, FOLD_2048_SECOND, FOLD_2048_FIRST);
    const __m512i near = _mm512_set4_epi64(FOLD_512_SECOND, FOLD_512_FIRST, FOLD_512_SECOND, FOLD_512_FIRST);
    __m512i sums[4];
    for (int part = 0; part < 4; part++) sums[part] = _mm512_loadu_si512(next + 64 * part);
    sums[0] = _mm512_xor_si512(sums[0], _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)~seed)));
    for (next += 256, length -= 256; length >= 256; next += 256, length -= 256) {
        for (int part = 0; part < 4; part++)
            sums[part] = folded(sums[part], far, _mm512_loadu_si512(next + 64 * part));
    }
    __m512i sum = folded(sums[0], near, sums[1]);
    sum = folded(sum, near, sums[2]);
    sum = folded(sum, near, sums[3]);
    for (; length >= 64; next += 64, length -= 64) sum = folded(sum, near, _mm512_loadu_si512(next));
    uint64_t words[8];
    _mm512_storeu_si512(words, sum);
    uint64_t crc = 0;
    for (int word = 0; word < 8; word++) crc = __builtin_ia32_crc32di(crc, words[word]);
    return crc32c_sse42(~(uint32_t)crc, next, length);
}

uint32_t clinux_crc32c(uint32_t seed, const void *bytes, size_t length) {
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq"))
        return crc32c_avx512(seed, bytes, length);
    if (__builtin_cpu_supports("sse4.2")) return crc32c_sse42(seed, bytes, length);
    return clinux_crc32c_portable(seed, bytes, length);
}
#elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
uint32_t clinux_crc32c(uint32_t seed, const void *bytes, size_t length) {
    const uint8_t *next = bytes;
    uint32_t crc = ~seed;
    for (; length >= 8; length -= 8, next += 8) {
        uint64_t word;
        memcpy(&word, next, 8);
        crc = __crc32cd(crc, word);
    }
    for (; length > 0; length--) crc = __crc32cb(crc, *next++);
    return ~crc;
}
#else
uint32_t clinux_crc32c(uint32_t seed, const void *bytes, size_t length) {
    return clinux_crc32c_portable(seed, bytes, length);
}
#endif

static inline uint64_t rotate(uint64_t word, int bits) { return (word << bits) | (word >> (64 - bits)); }

static inline void sip_round(uint64_t v[4]) {
    v[0] += v[1]; v[1] = rotate(v[1], 13); v[1] ^= v[0]; v[0] = rotate(v[0], 32);
    v[2] += v[3]; v[3] = rotate(v[3], 16); v[3] ^= v[2];
    v[0] += v[3]; v[3] = rotate(v[3], 21); v[3] ^= v[0];
    v[2] += v[1]; v[1] = rotate(v[1], 17); v[1] ^= v[2]; v[2] = rotate(v[2], 32);
}

void clinux_siphash128(uint64_t key0, uint64_t key1, const void *bytes, size_t length, uint64_t out[2]) {
    uint64_t v[4] = {0x736f6d6570736575ull ^ key0, 0x646f72616e646f6dull ^ key1 ^ 0xee,
                     0x6c7967656e657261ull ^ key0, 0x7465646279746573ull ^ key1};
    const uint8_t *next = bytes;
    size_t left = length;
    for (; left >= 8; left -= 8, next += 8) {
        uint64_t word;
        memcpy(&word, next, 8);  // little-endian machines only, as the rest of the format's code
        v[3] ^= word;
        sip_round(v);
        sip_round(v);
        v[0] ^= word;
    }
    uint64_t last = (uint64_t)length << 56;
    for (size_t index = 0; index < left; index++) last |= (uint64_t)next[index] << (8 * index);
    v[3] ^= last;
    sip_round(v);
    sip_round(v);
    v[0] ^= last;
    v[2] ^= 0xee;
    for (int round = 0; round < 4; round++) sip_round(v);
    out[0] = v[0] ^ v[1] ^ v[2] ^ v[3];
    v[1] ^= 0xdd;
    for (int round = 0; round < 4; round++) sip_round(v);
    out[1] = v[0] ^ v[1] ^ v[2] ^ v[3];
}
