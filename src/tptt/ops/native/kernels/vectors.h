// Vectors of LANES floats by the compiler's vector extension: the same source serves every instruction set.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

constexpr int LANES = TPTT_LANES;
typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t IntVec __attribute__((vector_size(4 * LANES)));
typedef uint32_t WordVec __attribute__((vector_size(4 * LANES)));
typedef uint16_t HalfVec __attribute__((vector_size(2 * LANES)));

template <class T>
inline T load_as(const void* p) {
  T x;
  memcpy(&x, p, sizeof x);
  return x;
}
inline Vec load(const float* p) { return load_as<Vec>(p); }
inline void store(float* p, Vec x) { memcpy(p, &x, sizeof x); }

// A store that goes past the caches, where the processor has one: it does not fetch the line first. ``p`` must be
// aligned to sizeof x.
template <class T>
inline void stream(void* p, T x) {
#if defined(__AVX512F__)
  if constexpr (sizeof x == 64) return _mm512_stream_si512(static_cast<__m512i*>(p), load_as<__m512i>(&x));
#endif
#if defined(__AVX__)
  if constexpr (sizeof x == 32) return _mm256_stream_si256(static_cast<__m256i*>(p), load_as<__m256i>(&x));
#endif
#if defined(__SSE2__)
  if constexpr (sizeof x == 16) return _mm_stream_si128(static_cast<__m128i*>(p), load_as<__m128i>(&x));
#endif
  memcpy(p, &x, sizeof x);
}
// Call it after the last `stream`, before another thread reads.
inline void end_streams() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// x in the first ``count`` lanes, zero in the others; any count.
template <int... I>
inline Vec first_lanes(Vec x, int count, std::integer_sequence<int, I...>) {
  return IntVec{I...} < count ? x : Vec{};
}
inline Vec first_lanes(Vec x, int count) { return first_lanes(x, count, std::make_integer_sequence<int, LANES>{}); }

template <int... I>
inline Vec splat(float x, std::integer_sequence<int, I...>) {
  return Vec{(static_cast<void>(I), x)...};
}
inline Vec splat(float x) { return splat(x, std::make_integer_sequence<int, LANES>{}); }

template <int S, int... I>
inline Vec rotated(Vec x, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(x, x, ((I + S) % LANES)...);
}
template <int S = LANES / 2>
inline float sum(Vec x) {
  x += rotated<S>(x, std::make_integer_sequence<int, LANES>{});
  if constexpr (S > 1)
    return sum<S / 2>(x);
  else
    return x[0];
}

inline float dot(const float* a, const float* b, int width) {
  Vec total{};
  int i = 0;
  for (; i + LANES <= width; i += LANES) total += load(a + i) * load(b + i);
  float result = sum(total);
  for (; i < width; i++) result += a[i] * b[i];
  return result;
}

// exp to 2 units in the last place; below -150 zero.
inline Vec exp(Vec x) {
  x = x < splat(-150.f) ? splat(-150.f) : x;
  x = x > splat(100.f) ? splat(100.f) : x;
  const Vec magic = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer
  Vec n = (x * splat(1.44269504089f) + magic) - magic;
  Vec r = (x - n * splat(0.693359375f)) + n * splat(2.12194440e-4f);
  Vec p = splat(1.f / 5040);
  for (float c : {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, .5f, 1.f, 1.f}) p = p * r + splat(c);
  // 2^n in two factors: one would leave the range of a float before its product with p does
  IntVec whole = __builtin_convertvector(n, IntVec), half = whole >> 1;
  IntVec first = (half + 127) << 23, second = (whole - half + 127) << 23;
  return p * load_as<Vec>(&first) * load_as<Vec>(&second);
}

// Both to 2 units in the last place of 1, for |x| up to a few thousand.
inline void sincos(Vec x, Vec& sine, Vec& cosine) {
  const Vec magic = splat(12582912.f);
  const Vec n = (x * splat(0.636619772f) + magic) - magic;  // quarter turns
  const Vec r = ((x - n * splat(1.5703125f)) - n * splat(4.83751297e-4f)) - n * splat(7.54978995e-8f), square = r * r;
  Vec s = splat(-1.9515296e-4f), c = splat(2.4433157e-5f);
  for (float factor : {8.3321609e-3f, -1.6666655e-1f}) s = s * square + splat(factor);
  for (float factor : {-1.3887316e-3f, 4.1666646e-2f, -.5f, 1.f}) c = c * square + splat(factor);
  s = s * square * r + r;
  const IntVec turns = __builtin_convertvector(n, IntVec);
  const IntVec odd = (turns & 1) != 0, below = (turns & 2) != 0, left = ((turns + 1) & 2) != 0;
  sine = odd ? c : s;
  cosine = odd ? s : c;
  sine = below ? -sine : sine;
  cosine = left ? -cosine : cosine;
}

inline Vec from_bfloat16(const uint16_t* p) {
  WordVec words = __builtin_convertvector(load_as<HalfVec>(p), WordVec) << 16;
  return load_as<Vec>(&words);
}
inline HalfVec to_bfloat16(Vec x) {
  const WordVec word = load_as<WordVec>(&x), near = (word + 0x7fffu + ((word >> 16) & 1)) >> 16;  // ties to even
  const WordVec not_a_number = (word >> 16) | 0x40;                                               // a NaN stays a NaN
  return __builtin_convertvector((word & 0x7fffffffu) > 0x7f800000u ? not_a_number : near, HalfVec);
}
inline uint16_t to_bfloat16(float x) { return to_bfloat16(splat(x))[0]; }
inline float from_bfloat16(uint16_t x) {
  uint32_t word = uint32_t(x) << 16;
  float result;
  memcpy(&result, &word, 4);
  return result;
}

// One stage of a transpose: exchange blocks of S lanes between two vectors.
template <int S, bool HIGH, int... I>
inline Vec exchange(Vec a, Vec b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, ((I & S) ? (HIGH ? I + LANES : I + LANES - S) : (HIGH ? I + S : I))...);
}
template <int S>
inline void exchange_all(Vec* x) {
  constexpr auto lanes = std::make_integer_sequence<int, LANES>{};
  for (int i = 0; i < LANES; i++)
    if (!(i & S)) {
      Vec a = x[i], b = x[i + S];
      x[i] = exchange<S, false>(a, b, lanes);
      x[i + S] = exchange<S, true>(a, b, lanes);
    }
  if constexpr (S > 1) exchange_all<S / 2>(x);
}

// The sum of each of x[0] to x[LANES - 1], in that order; overwrites x.
template <int S = LANES / 2>
inline Vec sums(Vec* x) {
  constexpr auto lanes = std::make_integer_sequence<int, LANES>{};
  for (int i = 0; i < S; i++)
    x[i] = exchange<S, false>(x[i], x[i + S], lanes) + exchange<S, true>(x[i], x[i + S], lanes);
  if constexpr (S > 1) return sums<S / 2>(x);
  return x[0];
}

// to [columns, to_row] = from [rows, from_row] transposed; rows and columns are multiples of LANES.
inline void transpose(const float* from, int from_row, float* to, int to_row, int rows, int columns) {
  for (int i = 0; i < rows; i += LANES)
    for (int j = 0; j < columns; j += LANES) {
      Vec x[LANES];
      for (int n = 0; n < LANES; n++) x[n] = load(from + (i + n) * from_row + j);
      exchange_all<LANES / 2>(x);
      for (int n = 0; n < LANES; n++) store(to + (j + n) * to_row + i, x[n]);
    }
}

inline int up_to_multiple(int64_t x, int of) { return int((x + of - 1) / of * of); }

}  // namespace
