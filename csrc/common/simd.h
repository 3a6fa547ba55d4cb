// Vectors for the fast kernels: the compilers' portable vector type, as wide as the instruction set has it.
//
// Vec<T> holds kLanes<T> numbers; +, -, *, /, comparisons and `mask ? a : b` work lane by lane. A comparison
// gives a vector of integers as wide as T: -1 where true, 0 where false. Include only in files compiled once
// per instruction set: everything here lives in that set's namespace.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define SCRATCHNN_INLINE static inline __attribute__((always_inline))
#define SCRATCHNN_MEMBER __attribute__((always_inline))

namespace scratchnn {
inline namespace CPU_CAPABILITY {

#if defined(CPU_CAPABILITY_AVX512)
constexpr int kVectorBytes = 64;
#elif defined(CPU_CAPABILITY_AVX2)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;  // SSE2 on x86-64, NEON on 64-bit ARM
#endif

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename VecOf<T>::type;

template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

// The signed integer as wide as T: the lanes of a mask, and of a vector of positions.
template <class T>
using IntOf = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

template <class T>
SCRATCHNN_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

template <class T>
SCRATCHNN_INLINE void store(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof(v));
}

// The first `count` lanes; the rest is zero.
template <class T>
SCRATCHNN_INLINE Vec<T> load_partial(const T* p, int64_t count) {
  Vec<T> v = {};
  std::memcpy(&v, p, static_cast<size_t>(count) * sizeof(T));
  return v;
}

template <class T>
SCRATCHNN_INLINE void store_partial(T* p, Vec<T> v, int64_t count) {
  std::memcpy(p, &v, static_cast<size_t>(count) * sizeof(T));
}

template <class T>
SCRATCHNN_INLINE Vec<T> broadcast(T x) {
  return x - Vec<T>{};  // x - 0, not 0 + x: keeps the sign of -0.0
}

// Asks memory for the cache line at p, to be read soon. Any address will do, also one past the end of an array. To the
// second-level cache: more lines can be on their way there than to the first.
template <class T>
SCRATCHNN_INLINE void prefetch(const T* p) {
  __builtin_prefetch(p, 0, 2);
}

// The same for `count` numbers.
template <class T>
SCRATCHNN_INLINE void prefetch(const T* p, int64_t count) {
  constexpr int64_t line = 64;
  const char* from = reinterpret_cast<const char*>(p);
  for (int64_t i = 0; i < count * static_cast<int64_t>(sizeof(T)); i += line) prefetch(from + i);
}

// For loops that read arrays from one end to the other: asks for what comes so many numbers later. The processor looks
// ahead itself, but keeps fewer lines on their way.
constexpr int64_t kAhead = 2048;
template <class T>
SCRATCHNN_INLINE void prefetch_ahead(const T* p) {
  prefetch(p + kAhead);
}

// a * b + c, rounded once where the processor can.
template <class V>
SCRATCHNN_INLINE V fma(V a, V b, V c) {
  return a * b + c;
}

// Keeps a loaded vector in a register: gcc otherwise folds the load into each of its uses, and a kernel that
// uses it six times loads it six times.
#if defined(__x86_64__)
#if defined(CPU_CAPABILITY_AVX512)
#define SCRATCHNN_KEEP_IN_REGISTER(v) asm("" : "+v"(v))
#else
#define SCRATCHNN_KEEP_IN_REGISTER(v) asm("" : "+x"(v))
#endif
#elif defined(__aarch64__)
#define SCRATCHNN_KEEP_IN_REGISTER(v) asm("" : "+w"(v))
#else
#define SCRATCHNN_KEEP_IN_REGISTER(v) (void)(v)
#endif

// The first `count` lanes of a vector; zero, and not zero times whatever was there, in the others.
template <class T, int... i>
SCRATCHNN_INLINE Vec<T> first_lanes_of(Vec<T> v, int64_t count, std::integer_sequence<int, i...>) {
  const Vec<IntOf<T>> lane = {i...};
  return lane < static_cast<IntOf<T>>(count) ? v : Vec<T>{};
}
template <class T>
SCRATCHNN_INLINE Vec<T> first_lanes(Vec<T> v, int64_t count) {
  return first_lanes_of<T>(v, count, std::make_integer_sequence<int, kLanes<T>>());
}

// The sum of all lanes, in a fixed order.
template <class T>
SCRATCHNN_INLINE T horizontal_sum(Vec<T> v) {
  T lanes[kLanes<T>];
  std::memcpy(lanes, &v, sizeof(v));
  for (int width = kLanes<T> / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

// The even lanes of the 2 * kLanes numbers (a, b): every second pixel of a row.
template <class T, int... i>
SCRATCHNN_INLINE Vec<T> take_every_second(Vec<T> a, Vec<T> b, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(a, b, (2 * i)...);
}
template <class T>
SCRATCHNN_INLINE Vec<T> even_lanes(Vec<T> a, Vec<T> b) {
  return take_every_second<T>(a, b, std::make_integer_sequence<int, kLanes<T>>());
}

// kLanes numbers, `step` apart. Reads up to step * kLanes numbers.
template <class T>
SCRATCHNN_INLINE Vec<T> load_every(const T* p, int64_t step) {
  if (step == 1) return load(p);
  if (step == 2) return even_lanes<T>(load(p), load(p + kLanes<T>));
  Vec<T> v = {};
  for (int i = 0; i < kLanes<T>; ++i) v[i] = p[i * step];
  return v;
}

// a0 b0 a1 b1 ... of the lower halves (offset 0), or of the upper ones (offset kLanes / 2).
template <class T, int offset, int... i>
SCRATCHNN_INLINE Vec<T> interleave(Vec<T> a, Vec<T> b, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(a, b, (offset + i / 2 + (i % 2) * kLanes<T>)...);
}

// Of two rows, the lanes whose number has the bit `step` unset, or set: a's on the left of b's, block by
// block.
template <class T, int step, int... i>
SCRATCHNN_INLINE Vec<T> left_blocks(Vec<T> a, Vec<T> b, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(a, b, (i & step ? kLanes<T> + i - step : i)...);
}
template <class T, int step, int... i>
SCRATCHNN_INLINE Vec<T> right_blocks(Vec<T> a, Vec<T> b, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(a, b, (i & step ? kLanes<T> + i : i + step)...);
}

// horizontal_sum of four vectors at once, and in the same order: sums[i] is that of v[i].
template <class T>
SCRATCHNN_INLINE void horizontal_sums(const Vec<T> (&v)[4], T* sums) {
  constexpr int n = kLanes<T>;
  if constexpr (n < 4) {
    for (int i = 0; i < 4; ++i) sums[i] = horizontal_sum<T>(v[i]);
  } else {
    // Adding the interleaved halves of two vectors folds both: v0 v1 v0 v1 ..., then v0 v2 v1 v3 v0 v2 v1 v3 ...
    constexpr auto lanes = std::make_integer_sequence<int, n>();
    const Vec<T> a = interleave<T, 0>(v[0], v[1], lanes) + interleave<T, n / 2>(v[0], v[1], lanes);
    const Vec<T> b = interleave<T, 0>(v[2], v[3], lanes) + interleave<T, n / 2>(v[2], v[3], lanes);
    const Vec<T> both = interleave<T, 0>(a, b, lanes) + interleave<T, n / 2>(a, b, lanes);
    T folded[n];
    std::memcpy(folded, &both, sizeof(both));
    for (int width = n / 2; width >= 4; width /= 2) {
      for (int i = 0; i < width; ++i) folded[i] += folded[i + width];
    }
    sums[0] = folded[0];
    sums[1] = folded[2];
    sums[2] = folded[1];
    sums[3] = folded[3];
  }
}

// Transposes the kLanes x kLanes block whose rows are rows[0..]: swaps its off-diagonal quarters, then those
// of each quarter, and so on. One or two instructions a row and step.
template <class T, int step = kLanes<T> / 2>
SCRATCHNN_INLINE void transpose(Vec<T> (&rows)[kLanes<T>]) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes<T>>();
  for (int i = 0; i < kLanes<T>; ++i) {
    if (i & step) continue;
    const Vec<T> a = rows[i], b = rows[i + step];
    rows[i] = left_blocks<T, step>(a, b, lanes);
    rows[i + step] = right_blocks<T, step>(a, b, lanes);
  }
  if constexpr (step > 1) transpose<T, step / 2>(rows);
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn
