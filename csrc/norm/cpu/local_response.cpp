// Local response normalization: each number over a power of the sum of squares in a window of channels.
//
// Each tensor is read from memory once. In N x C x H x W a strip of pixels goes by channel after channel, and the rows
// of a window stay in the first-level cache; in N x H x W x C some pixels do with all their channels, of which a window
// is a run. Nothing is ever subtracted from a sum, so nothing cancels.
#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>

#include "common/half.h"
#include "common/runtime.h"
#include "norm/cpu/endings.h"
#include "norm/cpu/formulas.h"
#include "norm/kernels.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kCachedBytes = 24 * 1024;  // of the rows a window is made of
constexpr int64_t kGrain = 8192;             // numbers a thread must have to be worth waking

// Lane by lane; compilers make one instruction of it only where they may forget about errno.
template <class T>
SCRATCHNN_INLINE Vec<T> square_root(Vec<T> v) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_sqrt_ps((__m512)v);
  if constexpr (sizeof(T) == 8) return (Vec<T>)_mm512_sqrt_pd((__m512d)v);
#elif defined(CPU_CAPABILITY_AVX2)
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm256_sqrt_ps((__m256)v);
  if constexpr (sizeof(T) == 8) return (Vec<T>)_mm256_sqrt_pd((__m256d)v);
#else
  for (int i = 0; i < kLanes<T>; ++i) v[i] = std::sqrt(v[i]);
  return v;
#endif
}

// s^-beta. The exponents of AlexNet (3/4) and its relatives are roots.
struct ThreeQuarters {
  template <class T>
  SCRATCHNN_MEMBER static Vec<T> of(Vec<T> s) {
    const Vec<T> root = square_root<T>(s);
    return T(1) / (root * square_root<T>(root));
  }
};
struct OneHalf {
  template <class T>
  SCRATCHNN_MEMBER static Vec<T> of(Vec<T> s) {
    return T(1) / square_root<T>(s);
  }
};
struct One {
  template <class T>
  SCRATCHNN_MEMBER static Vec<T> of(Vec<T> s) {
    return T(1) / s;
  }
};
struct Any {
  double beta;
  template <class T>
  SCRATCHNN_MEMBER Vec<T> of(Vec<T> s) const {
    for (int i = 0; i < kLanes<T>; ++i) s[i] = std::pow(s[i], static_cast<T>(-beta));
    return s;
  }
};

template <class Body>
void with_power(double beta, const Body& body) {
  if (beta == 0.75) return body(ThreeQuarters());
  if (beta == 0.5) return body(OneHalf());
  if (beta == 1) return body(One());
  body(Any{beta});
}

// body(column, part) for the vectors of a row.
template <class T, class Body>
SCRATCHNN_INLINE void for_each_vector(int64_t width, const Body& body) {
  int64_t column = 0;
  for (; column + kLanes<T> <= width; column += kLanes<T>) body(column, Whole());
  if (column < width) body(column, FirstLanes{width - column});
}

// The sum of `length` vectors, `step` numbers apart.
template <class T>
SCRATCHNN_INLINE Vec<T> window_sum(const T* p, int64_t step, int64_t length) {
  Vec<T> sum = load(p);
  for (int64_t i = 1; i < length; ++i) sum += load(p + i * step);
  return sum;
}

// body(length, what adds up a window): the lengths that networks use are known to the compiler.
template <class Body>
void with_length(int64_t length, const Body& body) {
  if (length == 3) return body(std::integral_constant<int64_t, 3>());
  if (length == 5) return body(std::integral_constant<int64_t, 5>());
  body(length);
}

// How s is had from the sum of squares.
template <class T>
struct Scale {
  Vec<T> scale, k;
  explicit Scale(const Window& window)
      : scale(broadcast(static_cast<T>(window.scale))), k(broadcast(static_cast<T>(window.k))) {}
  SCRATCHNN_MEMBER Vec<T> operator()(Vec<T> squares) const { return fma(squares, scale, k); }
};

// N x C x H x W: strips of an image's pixels, of which `rows` fit the cache.
template <class T>
struct Strips {
  const Window& window;
  int64_t columns, of_a_sample, count;

  Strips(const Window& w, int64_t rows) : window(w) {
    const int64_t fitting = std::max<int64_t>(kCachedBytes / (rows * static_cast<int64_t>(sizeof(T))), kLanes<T>);
    const int64_t fewest = (w.pixels + fitting - 1) / fitting, width = (w.pixels + fewest - 1) / fewest;
    columns = (width + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
    of_a_sample = (w.pixels + columns - 1) / columns;
    count = of_a_sample * w.samples;
  }

  int64_t grain() const { return std::max<int64_t>(1, kGrain / (window.channels * columns)); }
  int64_t first(int64_t i) const { return i % of_a_sample * columns; }
  int64_t width(int64_t i) const { return std::min(columns, window.pixels - first(i)); }
  int64_t start(int64_t i) const { return i / of_a_sample * window.channels * window.pixels + first(i); }
};

// body(column, part, s) for the pixels of a strip, s being that of their channel c.
template <class T, class Length, class Body>
SCRATCHNN_INLINE void for_each_scale(const Window& window, const T* x, int64_t c, int64_t width, Length length,
                                     const Body& body) {
  const Scale<T> scale(window);
  const int64_t first = std::max<int64_t>(c - window.before, 0), last = std::min(c + window.after, window.channels - 1);
  const T* from = x + first * window.pixels;
  const auto with_rows = [&](auto rows) SCRATCHNN_INLINE_LAMBDA {
    for_each_vector<T>(width, [&](int64_t i, auto part) SCRATCHNN_INLINE_LAMBDA {
      Vec<T> v = part.read(from + i), sum = v * v;
      for (int64_t row = 1; row < rows; ++row) {
        v = part.read(from + row * window.pixels + i);
        sum = fma(v, v, sum);
      }
      body(i, part, scale(sum));
    });
  };
  if (last - first + 1 == length) return with_rows(length);
  with_rows(last - first + 1);
}

template <class T, class Length, class Power>
void forward_strip(const Window& window, const T* x, T* y, int64_t width, Length length, Power power) {
  for (int64_t c = 0; c < window.channels; ++c) {
    const int64_t place = c * window.pixels;
    for_each_scale(window, x, c, width, length, [&](int64_t i, auto part, Vec<T> s) SCRATCHNN_INLINE_LAMBDA {
      part.write(y + place + i, part.read(x + place + i) * power.template of<T>(s));
    });
  }
}

// A number's gradient is that by its own output, g s^-beta, and what it adds to the s of the channels around it: the
// sum of g x s^(-beta - 1) over a window, whose rows are kept in a ring.
template <class T, class Length, class Power>
void backward_strip(const Window& window, const T* g, const T* x, T* dx, int64_t width, T* ring, int64_t columns,
                    Length length, Power power) {
  const Vec<T> slope = broadcast(static_cast<T>(-2 * window.scale * window.beta));
  std::fill_n(ring, length * columns, T(0));
  for (int64_t c = 0; c < window.channels + window.before; ++c) {
    const int64_t place = c * window.pixels, done = place - window.before * window.pixels;
    T* newest = ring + c % length * columns;
    if (c < window.channels) {
      for_each_scale(window, x, c, width, length, [&](int64_t i, auto part, Vec<T> s) SCRATCHNN_INLINE_LAMBDA {
        const Vec<T> direct = part.read(g + place + i) * power.template of<T>(s);
        part.write(dx + place + i, direct);
        store(newest + i, direct * part.read(x + place + i) / s);
      });
    } else {
      std::fill_n(newest, columns, T(0));
    }
    if (done < 0) continue;
    for_each_vector<T>(width, [&](int64_t i, auto part) SCRATCHNN_INLINE_LAMBDA {
      const Vec<T> others = window_sum(ring + i, columns, length);
      part.write(dx + done + i, fma(part.read(x + done + i) * slope, others, part.read(dx + done + i)));
    });
  }
}

// N x H x W x C: some pixels at a time, each a row of its channels with zeros around them.
template <class T>
struct Pixels {
  const Window& window;
  int64_t columns, at_a_time, count;

  Pixels(const Window& w, int64_t rows) : window(w) {
    columns = (w.channels + kLanes<T> - 1) / kLanes<T> * kLanes<T> + w.before + w.after;
    at_a_time = std::max<int64_t>(1, kCachedBytes / (rows * columns * static_cast<int64_t>(sizeof(T))));
    count = (w.samples * w.pixels + at_a_time - 1) / at_a_time;
  }

  int64_t size() const { return at_a_time * columns; }
  int64_t grain() const { return std::max<int64_t>(1, kGrain / (at_a_time * window.channels)); }
  // body(place of the first channel in the tensor, start of the row) for the i-th lot of pixels.
  template <class Body>
  SCRATCHNN_MEMBER void for_each(int64_t i, T* rows, const Body& body) const {
    const int64_t first = i * at_a_time, last = std::min(first + at_a_time, window.samples * window.pixels);
    for (int64_t p = first; p < last; ++p) body(p * window.channels, rows + (p - first) * columns);
  }
};

template <class T>
void square_pixels(const Pixels<T>& pixels, int64_t i, const T* x, T* squares) {
  pixels.for_each(i, squares, [&](int64_t place, T* row) SCRATCHNN_INLINE_LAMBDA {
    for_each_vector<T>(pixels.window.channels, [&](int64_t c, auto part) SCRATCHNN_INLINE_LAMBDA {
      const Vec<T> v = part.read(x + place + c);
      part.write(row + pixels.window.before + c, v * v);
    });
  });
}

template <class T, class Length, class Power>
void forward_pixels(const Pixels<T>& pixels, int64_t lot, const T* x, T* y, T* squares, Length length, Power power) {
  const Scale<T> scale(pixels.window);
  square_pixels(pixels, lot, x, squares);
  pixels.for_each(lot, squares, [&](int64_t place, T* row) SCRATCHNN_INLINE_LAMBDA {
    for_each_vector<T>(pixels.window.channels, [&](int64_t c, auto part) SCRATCHNN_INLINE_LAMBDA {
      const Vec<T> s = scale(window_sum(row + c, 1, length));
      part.write(y + place + c, part.read(x + place + c) * power.template of<T>(s));
    });
  });
}

template <class T, class Length, class Power>
void backward_pixels(const Pixels<T>& pixels, int64_t lot, const T* g, const T* x, T* dx, T* squares, T* terms,
                     Length length, Power power) {
  const Window& window = pixels.window;
  const Scale<T> scale(window);
  const Vec<T> slope = broadcast(static_cast<T>(-2 * window.scale * window.beta));
  square_pixels(pixels, lot, x, squares);
  pixels.for_each(lot, squares, [&](int64_t place, T* row) SCRATCHNN_INLINE_LAMBDA {
    T* own = terms + (row - squares) + window.after;
    for_each_vector<T>(window.channels, [&](int64_t c, auto part) SCRATCHNN_INLINE_LAMBDA {
      const Vec<T> s = scale(window_sum(row + c, 1, length));
      const Vec<T> direct = part.read(g + place + c) * power.template of<T>(s);
      part.write(dx + place + c, direct);
      part.write(own + c, direct * part.read(x + place + c) / s);  // g x s^(-beta - 1)
    });
  });
  pixels.for_each(lot, terms, [&](int64_t place, T* row) SCRATCHNN_INLINE_LAMBDA {
    for_each_vector<T>(window.channels, [&](int64_t c, auto part) SCRATCHNN_INLINE_LAMBDA {
      const Vec<T> others = window_sum(row + c, 1, length);
      part.write(dx + place + c, fma(part.read(x + place + c) * slope, others, part.read(dx + place + c)));
    });
  });
}

// body(power, length), what is known of a window when the kernel is compiled.
template <class Body>
void with_known(const Window& window, const Body& body) {
  with_power(window.beta, [&](auto power) {
    with_length(window.before + window.after + 1, [&](auto length) { body(power, length); });
  });
}

template <class T>
void local_response_norm(const Window& window, const T* input, T* output) {
  const int64_t n = window.before + window.after + 1;
  with_known(window, [&](auto power, auto length) {
    if (window.channels_last) {
      const Pixels<T> pixels(window, 1);
      parallel_for(0, pixels.count, pixels.grain(), [&](int64_t first, int64_t last) {
        T* squares = scratch<T>(pixels.size());
        std::fill_n(squares, pixels.size(), T(0));
        for (int64_t i = first; i < last; ++i) forward_pixels(pixels, i, input, output, squares, length, power);
      });
      return;
    }
    const Strips<T> strips(window, n + 1);
    parallel_for(0, strips.count, strips.grain(), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t start = strips.start(i);
        forward_strip(window, input + start, output + start, strips.width(i), length, power);
      }
    });
  });
}

template <class T>
void local_response_norm_backward(const Window& window, const T* grad, const T* input, T* grad_input) {
  const int64_t n = window.before + window.after + 1;
  with_known(window, [&](auto power, auto length) {
    if (window.channels_last) {
      const Pixels<T> pixels(window, 2);
      parallel_for(0, pixels.count, pixels.grain(), [&](int64_t first, int64_t last) {
        T* squares = scratch<T>(2 * pixels.size());
        std::fill_n(squares, 2 * pixels.size(), T(0));
        for (int64_t i = first; i < last; ++i) {
          backward_pixels(pixels, i, grad, input, grad_input, squares, squares + pixels.size(), length, power);
        }
      });
      return;
    }
    const Strips<T> strips(window, 3 * n);
    parallel_for(0, strips.count, strips.grain(), [&](int64_t first, int64_t last) {
      T* ring = scratch<T>(n * strips.columns);
      for (int64_t i = first; i < last; ++i) {
        const int64_t start = strips.start(i);
        backward_strip(window, grad + start, input + start, grad_input + start, strips.width(i), ring, strips.columns,
                       length, power);
      }
    });
  });
}

}  // namespace

SCRATCHNN_REGISTER_KERNEL(local_response_norm_kernel<float>, &local_response_norm<float>);
SCRATCHNN_REGISTER_KERNEL(local_response_norm_kernel<double>, &local_response_norm<double>);
SCRATCHNN_REGISTER_KERNEL(local_response_norm_backward_kernel<float>, &local_response_norm_backward<float>);
SCRATCHNN_REGISTER_KERNEL(local_response_norm_backward_kernel<double>, &local_response_norm_backward<double>);

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn
