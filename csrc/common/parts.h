// Parts of an array, for loops that are written once for its whole vectors and for what is left at its end.
#pragma once

#include "common/half.h"
#include "common/simd.h"
#include "common/stream.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {

// What a loop computes at a time: a vector of numbers, the first few lanes of one (the rest is zero and
// stays as it is in memory), or a single number. S is the type in memory.
struct Whole {
  template <class S>
  SCRATCHNN_MEMBER static Vec<Wide<S>> read(const S* p) {
    return scratchnn::read(p);
  }
  template <class S>
  SCRATCHNN_MEMBER static void write(S* p, Vec<Wide<S>> v) {
    scratchnn::write(p, v);
  }
};
// A vector that is written past the cache.
struct Streamed : Whole {
  template <class S>
  SCRATCHNN_MEMBER static void write(S* p, Vec<Wide<S>> v) {
    stream(p, v);
  }
};
struct FirstLanes {
  int64_t count;
  template <class S>
  SCRATCHNN_MEMBER Vec<Wide<S>> read(const S* p) const {
    return read_partial(p, count);
  }
  template <class S>
  SCRATCHNN_MEMBER void write(S* p, Vec<Wide<S>> v) const {
    write_partial(p, v, count);
  }
};
struct Single {
  template <class S>
  SCRATCHNN_MEMBER static Wide<S> read(const S* p) {
    return read_one(p);
  }
  template <class S>
  SCRATCHNN_MEMBER static void write(S* p, Wide<S> x) {
    write_one(p, x);
  }
};

// body(part), the part being how the whole vectors of an output are written.
template <class Body>
SCRATCHNN_INLINE void with_vectors(bool streamed, const Body& body) {
  if (!streamed) return body(Whole());
  body(Streamed());
  finish_streaming();
}

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn
