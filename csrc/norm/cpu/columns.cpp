// Normalization where the numbers of a set come in short runs: batch norm and group norm of N x H x W x C in memory.
//
// Memory is a table whose rows hold all sets; whole rows are read in order, and every column has its own
// sums. The table is made wide enough for whole vectors by taking several rows as one, so a set owns several
// columns; what does not fill a wide row at the end is done number by number. Sums are taken over fixed
// chunks of rows and combined in order, so they are the same numbers however many threads there are.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "common/runtime.h"
#include "common/simd.h"
#include "norm/cpu/endings.h"
#include "norm/cpu/formulas.h"
#include "norm/kernels.h"

namespace scratchnn {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kNarrowest = 64;  // columns a row should have
constexpr int64_t kPanel = 512;     // numbers that are walked column by column
constexpr int64_t kLongRow = 256;   // columns from which on rows are read one by one: side by side costs bandwidth
constexpr int64_t kShortestPanel = 8, kBlock = 64;  // rows; a block is summed in its own precision
constexpr int64_t kChunk = 65536;                   // numbers in a chunk, at the least
constexpr int64_t kMostChunks = 64;
constexpr int64_t kMostParts = 32;  // of a batch
constexpr int64_t kGrain = 32768;   // numbers a thread must have to be worth waking

// `rows` x `width` numbers and a remainder of less than a row.
struct Table {
  Interleaved geometry;
  int64_t repeat;  // rows of the geometry in one of the table
  int64_t width, rows, panel_rows, chunk_rows, chunks;

  Table(const Interleaved& sets, int64_t lanes) : geometry(sets) {
    const int64_t narrow = sets.sets * sets.inner;
    repeat = 1;
    while (repeat * narrow < kNarrowest || repeat * narrow % lanes != 0) repeat *= 2;
    width = repeat * narrow;
    rows = sets.outer / repeat;
    panel_rows = width < kLongRow ? kShortestPanel : 1;
    while (panel_rows < kBlock && 2 * panel_rows * width <= kPanel) panel_rows *= 2;
    chunk_rows = std::max({(rows + kMostChunks - 1) / kMostChunks, (kChunk + width - 1) / width, panel_rows});
    chunks = (rows + chunk_rows - 1) / chunk_rows;
  }

  // body(column, set, parameter) for the columns of a row of the table, or of one of the geometry.
  template <class Body>
  void for_each_column(int64_t repeats, const Body& body) const {
    int64_t column = 0;
    for (int64_t r = 0; r < repeats; ++r) {
      for (int64_t set = 0; set < geometry.sets; ++set) {
        for (int64_t i = 0; i < geometry.inner; ++i, ++column) {
          body(column, set, geometry.weight_by_position ? set * geometry.inner + i : set);
        }
      }
    }
  }
  int64_t columns_of_a_set() const { return repeat * geometry.inner; }
  // The i-th column of a set.
  int64_t column_of(int64_t set, int64_t i) const {
    return (i / geometry.inner * geometry.sets + set) * geometry.inner + i % geometry.inner;
  }

  // body(first row, last row) in pieces of at most `most` rows.
  template <class Body>
  static void in_pieces(int64_t first, int64_t last, int64_t most, const Body& body) {
    for (int64_t row = first; row < last; row += most) body(row, std::min(row + most, last));
  }

  // body(chunk, first row, last row) for all chunks, on all threads; backwards on request, so that the second
  // walk over a tensor begins with what the cache still has of the first.
  template <class Body>
  void for_each_chunk(bool backwards, const Body& body) const {
    const int64_t grain = std::max<int64_t>(1, kGrain / (chunk_rows * width));
    const auto visit = [&](int64_t chunk) {
      body(chunk, chunk * chunk_rows, std::min((chunk + 1) * chunk_rows, rows));
    };
    if (backwards) {
      parallel_for_backwards(0, chunks, grain, [&](int64_t first, int64_t last) {
        for (int64_t chunk = last - 1; chunk >= first; --chunk) visit(chunk);
      });
    } else {
      parallel_for(0, chunks, grain, [&](int64_t first, int64_t last) {
        for (int64_t chunk = first; chunk < last; ++chunk) visit(chunk);
      });
    }
  }
};

// One chunk's, later all chunks', sums: for every column n in double, and as many in the numbers' own precision.
template <class T, int n>
struct ColumnSums {
  double* wide[n];
  T *own[n], *shift;

  static constexpr int64_t kBytes = n * sizeof(double) + (n + 1) * sizeof(T);  // for one column
  ColumnSums(char* memory, int64_t width) {
    for (int i = 0; i < n; ++i) wide[i] = reinterpret_cast<double*>(memory) + i * width;
    for (int i = 0; i < n; ++i) own[i] = reinterpret_cast<T*>(wide[0] + n * width) + i * width;
    shift = own[0] + n * width;
    std::fill_n(wide[0], n * width, 0.0);
  }
};

// add(offset, column, sums) for all numbers of a panel, where offset is the position within the panel; the sums of a
// column stay in registers from the first row to the last and are then added to its own.
template <class T, int columns, int n, class Add>
SCRATCHNN_INLINE void sum_columns(int64_t rows, int64_t width, int64_t column, const ColumnSums<T, n>& sums,
                                  const Add& add) {
  Vec<T> even[columns][n] = {}, odd[columns][n] = {};
  int64_t row = 0;
  for (; row + 2 <= rows; row += 2) {
#pragma GCC unroll 2
    for (int i = 0; i < columns; ++i) {
      const int64_t here = column + i * kLanes<T>;
      add(row * width + here, here, even[i]);
      add((row + 1) * width + here, here, odd[i]);
    }
  }
#pragma GCC unroll 2
  for (int i = 0; i < columns; ++i) {
    const int64_t here = column + i * kLanes<T>;
    if (row < rows) add(row * width + here, here, even[i]);
#pragma GCC unroll 3
    for (int k = 0; k < n; ++k) store(sums.own[k] + here, load(sums.own[k] + here) + (even[i][k] + odd[i][k]));
  }
}

template <class T, int n, class Add>
SCRATCHNN_INLINE void sum_panel(int64_t rows, int64_t width, const ColumnSums<T, n>& sums, const Add& add) {
  int64_t column = 0;
  for (; column + 2 * kLanes<T> <= width; column += 2 * kLanes<T>) sum_columns<T, 2>(rows, width, column, sums, add);
  if (column < width) sum_columns<T, 1>(rows, width, column, sums, add);
}

// Adds the rows [first, last) of the table to the sums of a chunk, a block at a time.
template <class S, class T>
void chunk_moments(const Table& table, const S* input, int64_t first, int64_t last, const ColumnSums<T, 2>& sums) {
  const int64_t width = table.width;
  const int64_t sample = std::min(last - first, kShortestPanel);
  std::fill_n(sums.own[0], 2 * width, T(0));
  for (int64_t row = first; row < first + sample; ++row) {
    for (int64_t column = 0; column < width; ++column) {
      const T x = read_one(input + row * width + column);
      sums.own[0][column] += x;
      sums.own[1][column] += x * x;
    }
  }
  const T share = 1 / static_cast<T>(sample);
  for (int64_t column = 0; column < width; ++column) {
    sums.shift[column] = shift_of(sums.own[0][column] * share, sums.own[1][column] * share);
  }
  Table::in_pieces(first, last, kBlock, [&](int64_t block, int64_t block_end) {
    std::fill_n(sums.own[0], 2 * width, T(0));
    Table::in_pieces(block, block_end, table.panel_rows, [&](int64_t panel, int64_t panel_end) {
      const S* x = input + panel * width;
      sum_panel(panel_end - panel, width, sums,
                [&](int64_t i, int64_t column, Vec<T>(&own)[2]) SCRATCHNN_INLINE_LAMBDA {
                  prefetch_ahead(x + i);
                  const Vec<T> d = read(x + i) - load(sums.shift + column);
                  own[0] += d;
                  own[1] = fma(d, d, own[1]);
                });
    });
    const BlockWeights weights(static_cast<double>(block - first), static_cast<double>(block_end - block));
    const double inverse = 1 / static_cast<double>(block_end - first);
    for (int64_t column = 0; column < width; ++column) {
      merge_block(sums.wide[0][column], sums.wide[1][column], sums.shift[column], sums.own[0][column],
                  sums.own[1][column], weights);
      const double mean = sums.wide[0][column];
      sums.shift[column] = static_cast<T>(shift_of(mean, mean * mean + sums.wide[1][column] * inverse));
    }
  });
}

// The moments of the sets from those of the chunks' columns, and from the numbers after the last row.
template <class S, class T>
void set_moments(const Table& table, const S* input, const ColumnSums<T, 2>* chunks, double* mean, double* variance) {
  const Interleaved& geometry = table.geometry;
  double rows = 0;
  for (int64_t chunk = 0; chunk < table.chunks; ++chunk) {
    const double more = static_cast<double>(std::min(table.chunk_rows, table.rows - chunk * table.chunk_rows));
    const double share = more / (rows + more);
    for (int64_t column = 0; chunk > 0 && column < table.width; ++column) {
      merge(chunks[0].wide[0][column], chunks[0].wide[1][column], chunks[chunk].wide[0][column],
            chunks[chunk].wide[1][column], share, share * rows);
    }
    rows += more;
  }
  std::fill_n(mean, geometry.sets, 0.0);
  std::fill_n(variance, geometry.sets, 0.0);  // the sum of squared deviations, until the end
  double count = 0;
  for (int64_t i = 0; table.rows > 0 && i < table.columns_of_a_set(); ++i) {
    const double share = rows / (count + rows);
    for (int64_t set = 0; set < geometry.sets; ++set) {
      const int64_t column = table.column_of(set, i);
      merge(mean[set], variance[set], chunks[0].wide[0][column], chunks[0].wide[1][column], share, share * count);
    }
    count += rows;
  }
  for (int64_t outer = table.rows * table.repeat; outer < geometry.outer; ++outer) {
    for (int64_t inner = 0; inner < geometry.inner; ++inner) {
      const double share = 1 / (count + 1);
      for (int64_t set = 0; set < geometry.sets; ++set) {
        const T x = read_one(input + (outer * geometry.sets + set) * geometry.inner + inner);
        merge(mean[set], variance[set], x, 0, share, share * count);
      }
      count += 1;
    }
  }
  for (int64_t set = 0; set < geometry.sets; ++set) variance[set] /= count;
}

// write(position, column, part) for every number of the table: each vector of each row, and each number that follows
// the last row.
template <class T, class S, class Write>
SCRATCHNN_INLINE void for_each_number(const Table& table, bool backwards, const S* output, const Write& write) {
  const int64_t width = table.width;
  const bool streamed = is_worth_streaming(output, table.geometry.batch * table.geometry.size(), width);
  table.for_each_chunk(backwards, [&](int64_t, int64_t first, int64_t last) {
    const Write own = write;  // its members then stay in registers: stores might change those of the original
    with_vectors(streamed, [&](auto full) {
      for (int64_t row = first; row < last; ++row) {
        for (int64_t column = 0; column < width; column += kLanes<T>) own(row * width + column, column, full);
      }
    });
  });
  const int64_t done = table.rows * width;
  for (int64_t i = done; i < table.geometry.size(); ++i) write(i, i - done, Single());
}

// The constants of the columns of a row. Without biases these are zero.
template <class T>
void set_forward_lines(const Table& table, const double* weight, const double* bias, double eps, const double* mean,
                       const double* variance, T* centre, T* scale, T* offset) {
  table.for_each_column(table.repeat, [&](int64_t column, int64_t set, int64_t parameter) {
    const double b = bias == nullptr ? 0 : bias[parameter];
    const ForwardLine<T> line(weight[parameter], b, mean[set], variance[set], eps);
    centre[column] = line.centre;
    scale[column] = line.scale;
    offset[column] = line.offset;
  });
}

// y = (x - centre) scale + offset, and the ending, by vectors and number by number, rounded alike.
template <class S, class T>
void apply_forward(const Table& table, const S* input, S* output, const double* weight, const double* bias, double eps,
                   const double* mean, const double* variance, T* constants, bool backwards, const Ending<S>& ending) {
  T *centre = constants, *scale = centre + table.width, *offset = scale + table.width;
  set_forward_lines(table, weight, bias, eps, mean, variance, centre, scale, offset);
  with_finish(ending, [&](const auto& finish) {
    for_each_number<T>(table, backwards, output, [=](int64_t i, int64_t column, auto part) SCRATCHNN_INLINE_LAMBDA {
      const auto c = part.read(centre + column), a = part.read(scale + column), b = part.read(offset + column);
      part.write(output + i, finish(part, fma(part.read(input + i) - c, a, b), i));
    });
  });
}

// This thread's scratch memory: `constants` arrays of a row's width, then n sums of every chunk, at most `most`.
template <class T, int most>
struct Scratch {
  const Table& table;
  T* constants;
  char* sums;

  Scratch(const Table& t, int64_t arrays) : table(t) {
    const int64_t constant_bytes = arrays * table.width * static_cast<int64_t>(sizeof(T));
    char* memory = scratch<char>(constant_bytes + table.chunks * ColumnSums<T, most>::kBytes * table.width);
    constants = reinterpret_cast<T*>(memory);
    sums = memory + constant_bytes;
  }

  template <int n>
  std::vector<ColumnSums<T, n>> chunks() const {
    std::vector<ColumnSums<T, n>> result;
    for (int64_t chunk = 0; chunk < table.chunks; ++chunk) {
      result.emplace_back(sums + chunk * ColumnSums<T, n>::kBytes * table.width, table.width);
    }
    return result;
  }
};

template <class S>
void table_train(const Interleaved& geometry, const S* input, S* output, const double* weight, const double* bias,
                 double eps, double* mean, double* variance, const Ending<S>& ending) {
  using T = Wide<S>;
  const Table table(geometry, kLanes<T>);
  const Scratch<T, 2> own(table, 3);
  const auto chunks = own.template chunks<2>();
  table.for_each_chunk(/*backwards=*/false, [&](int64_t chunk, int64_t first, int64_t last) {
    chunk_moments(table, input, first, last, chunks[chunk]);
  });
  set_moments(table, input, chunks.data(), mean, variance);
  if (output != nullptr)
    apply_forward(table, input, output, weight, bias, eps, mean, variance, own.constants, /*backwards=*/true, ending);
}

// body(i) for each of `count` tables: a single one is shared by all threads, of several each is computed by one.
template <class Body>
void for_each_table(int64_t count, const Body& body) {
  if (count == 1) return body(0);
  parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) body(i);
  });
}

template <class S>
void norm_train(const Interleaved& geometry, const S* input, S* output, const double* weight, const double* bias,
                double eps, double* mean, double* variance, const Ending<S>& ending) {
  for_each_table(geometry.batch, [&](int64_t b) {
    const int64_t start = b * geometry.size(), set = b * geometry.sets;
    S* out = output == nullptr ? nullptr : output + start;
    Ending<S> here = ending;
    if (here.residual != nullptr) here.residual += start;
    table_train(geometry, input + start, out, weight, bias, eps, mean + set, variance + set, here);
  });
}

template <class S>
void norm_eval(const Interleaved& geometry, const S* input, S* output, const double* weight, const double* bias,
               double eps, const double* mean, const double* variance, const Ending<S>& ending) {
  using T = Wide<S>;
  const Table table(geometry, kLanes<T>);
  T* constants = scratch<T>(3 * table.width);
  apply_forward(table, input, output, weight, bias, eps, mean, variance, constants, /*backwards=*/false, ending);
}

// Adds the rows [first, last) to the sums of a chunk: of g, of g (x - centre), and, `measured`, of x - centre.
template <class S, class T, int n, class Gate, class Arrival>
void chunk_grad_sums(const Table& table, const S* grad, const S* input, const T* centre, const T* scale,
                     const T* offset, int64_t first, int64_t last, const ColumnSums<T, n>& sums, const Gate& gate,
                     const Arrival& arrived) {
  const int64_t width = table.width;
  Table::in_pieces(first, last, kBlock, [&](int64_t block, int64_t block_end) {
    std::fill_n(sums.own[0], n * width, T(0));
    Table::in_pieces(block, block_end, table.panel_rows, [&](int64_t panel, int64_t panel_end) {
      const int64_t start = panel * width;
      sum_panel(panel_end - panel, width, sums,
                [&](int64_t i, int64_t column, Vec<T>(&own)[n]) SCRATCHNN_INLINE_LAMBDA {
                  prefetch_ahead(input + start + i);
                  prefetch_ahead(grad + start + i);
                  arrived.prepare(start + i + kAhead);
                  const Vec<T> d = read(input + start + i) - load(centre + column);
                  const Vec<T> factor = load(scale + column);
                  const Vec<T> slope = gate(Whole(), grad, start + i, fma(d, factor, load(offset + column)));
                  arrived(Whole(), start + i, slope, factor);
                  own[0] += slope;
                  own[1] = fma(slope, d, own[1]);
                  if constexpr (n == 3) own[2] += d;
                });
    });
    for (int64_t i = 0; i < n * width; ++i) sums.wide[0][i] += sums.own[0][i];
  });
}

// The same for every number of a row, over all rows: those of column i are totals[i], totals[narrow + i], ...
template <class S, class T, int n, class Gate, class Arrival>
void row_grad_sums(const Table& table, const S* grad, const S* input, const T* centre, const T* scale, const T* offset,
                   const std::vector<ColumnSums<T, n>>& chunks, double* totals, const Gate& gate,
                   const Arrival& arrived) {
  const int64_t narrow = table.width / table.repeat;
  std::fill_n(totals, n * narrow, 0.0);
  for (int64_t chunk = 1; chunk < table.chunks; ++chunk) {
    for (int64_t i = 0; i < n * table.width; ++i) chunks[0].wide[0][i] += chunks[chunk].wide[0][i];
  }
  for (int64_t start = 0; table.rows > 0 && start < table.width; start += narrow) {
    for (int k = 0; k < n; ++k) {
      for (int64_t i = 0; i < narrow; ++i) totals[k * narrow + i] += chunks[0].wide[k][start + i];
    }
  }
  for (int64_t start = table.rows * table.width; start < table.geometry.size(); start += narrow) {
    for (int64_t i = 0; i < narrow; ++i) {
      const T d = read_one(input + start + i) - centre[i];
      const T slope = gate(Single(), grad, start + i, fma(d, scale[i], offset[i]));
      arrived(Single(), start + i, slope, scale[i]);
      totals[i] += slope;
      totals[narrow + i] += static_cast<double>(slope) * d;
      if constexpr (n == 3) totals[2 * narrow + i] += d;
    }
  }
}

template <class S>
void table_backward(const Interleaved& geometry, const S* grad, const S* input, S* grad_input, const double* weight,
                    const double* mean, const double* variance, double eps, Origin origin, double* grad_weight,
                    double* grad_bias, const Ending<S>& ending, const Gate<S>& gate) {
  using T = Wide<S>;
  const Table table(geometry, kLanes<T>);
  const Scratch<T, 3> own(table, 4);
  T *centre = own.constants, *grad_scale = centre + table.width;
  T *input_scale = grad_scale + table.width, *offset = input_scale + table.width;
  T *scale = grad_scale, *shift = offset;  // of the forward pass, until the sums are there
  set_forward_lines(table, weight, gate.bias, eps, mean, variance, centre, scale, shift);
  const int64_t narrow = geometry.sets * geometry.inner;
  std::vector<double> sums(3 * narrow), means(3 * geometry.sets);
  const double *sum_g = sums.data(), *sum_g_x = sum_g + narrow, *sum_d = sum_g_x + narrow;
  double *mean_wg = means.data(), *mean_wg_x_hat = mean_wg + geometry.sets, *exact = mean_wg_x_hat + geometry.sets;
  const bool streamed = is_worth_streaming(grad_input, geometry.batch * geometry.size(), table.width);
  with_first_pass(
      origin, ending, gate, grad_input, streamed, [&](auto measured, const auto& open, const auto& arrived) {
        const auto chunks = own.template chunks<measured.value ? 3 : 2>();
        table.for_each_chunk(/*backwards=*/false, [&](int64_t chunk, int64_t first, int64_t last) {
          chunk_grad_sums(table, grad, input, centre, scale, shift, first, last, chunks[chunk], open, arrived);
          if (streamed) finish_streaming();
        });
        row_grad_sums(table, grad, input, centre, scale, shift, chunks, sums.data(), open, arrived);
      });
  if (gate.passed != nullptr) grad = gate.passed;
  const double share = 1 / static_cast<double>(geometry.count());
  std::copy_n(mean, geometry.sets, exact);
  if (is_measured(origin, gate)) {
    for (int64_t set = 0; set < geometry.sets; ++set) exact[set] = static_cast<T>(mean[set]);
    table.for_each_column(1, [&](int64_t i, int64_t set, int64_t) { exact[set] += share * sum_d[i]; });
  }
  table.for_each_column(1, [&](int64_t i, int64_t set, int64_t parameter) {
    const double g_x_hat = sum_g_x_hat(sum_g[i], sum_g_x[i], centre[i], exact[set], variance[set], eps);
    grad_bias[parameter] += sum_g[i];
    grad_weight[parameter] += g_x_hat;
    mean_wg[set] += share * weight[parameter] * sum_g[i];
    mean_wg_x_hat[set] += share * weight[parameter] * g_x_hat;
  });
  if (origin == Origin::kConstants) return;
  table.for_each_column(table.repeat, [&](int64_t column, int64_t set, int64_t parameter) {
    const BackwardLine<T> line(weight[parameter], exact[set], variance[set], eps, mean_wg[set], mean_wg_x_hat[set]);
    centre[column] = line.centre;
    grad_scale[column] = line.grad_scale;
    input_scale[column] = line.input_scale;
    offset[column] = line.offset;
  });
  for_each_number<T>(
      table, /*backwards=*/true, grad_input, [=](int64_t i, int64_t column, auto part) SCRATCHNN_INLINE_LAMBDA {
        const auto c = part.read(centre + column), o = part.read(offset + column);
        const auto g_scale = part.read(grad_scale + column), x_scale = part.read(input_scale + column);
        part.write(grad_input + i, fma(part.read(grad + i), g_scale, fma(part.read(input + i) - c, x_scale, o)));
      });
}

// The batch in fixed parts, each with gradients of weight and bias of its own, added up in order. An ending with limits
// is for a batch of one.
template <class S>
void norm_backward(const Interleaved& geometry, const S* grad, const S* input, S* grad_input, const double* weight,
                   const double* mean, const double* variance, double eps, Origin origin, double* grad_weight,
                   double* grad_bias, const Ending<S>& ending, const Gate<S>& gate) {
  const int64_t parts = std::min(geometry.batch, kMostParts), parameters = geometry.parameters();
  std::vector<double> gradients(2 * parts * parameters);
  for_each_table(parts, [&](int64_t part) {
    double* dw = gradients.data() + 2 * part * parameters;
    for (int64_t b = geometry.batch * part / parts; b < geometry.batch * (part + 1) / parts; ++b) {
      const int64_t start = b * geometry.size(), set = b * geometry.sets;
      table_backward(geometry, grad + start, input + start, grad_input + start, weight, mean + set, variance + set, eps,
                     origin, dw, dw + parameters, ending, gate);
    }
  });
  std::fill_n(grad_weight, parameters, 0.0);
  std::fill_n(grad_bias, parameters, 0.0);
  for (int64_t part = 0; part < parts; ++part) {
    const double* dw = gradients.data() + 2 * part * parameters;
    for (int64_t i = 0; i < parameters; ++i) {
      grad_weight[i] += dw[i];
      grad_bias[i] += dw[parameters + i];
    }
  }
}

}  // namespace

SCRATCHNN_REGISTER_KERNEL(norm_train_columns<float>, &norm_train<float>);
SCRATCHNN_REGISTER_KERNEL(norm_train_columns<double>, &norm_train<double>);
SCRATCHNN_REGISTER_KERNEL(norm_train_columns<BFloat16>, &norm_train<BFloat16>);
SCRATCHNN_REGISTER_KERNEL(norm_train_columns<Half>, &norm_train<Half>);
SCRATCHNN_REGISTER_KERNEL(norm_eval_columns<float>, &norm_eval<float>);
SCRATCHNN_REGISTER_KERNEL(norm_eval_columns<double>, &norm_eval<double>);
SCRATCHNN_REGISTER_KERNEL(norm_eval_columns<BFloat16>, &norm_eval<BFloat16>);
SCRATCHNN_REGISTER_KERNEL(norm_eval_columns<Half>, &norm_eval<Half>);
SCRATCHNN_REGISTER_KERNEL(norm_backward_columns<float>, &norm_backward<float>);
SCRATCHNN_REGISTER_KERNEL(norm_backward_columns<double>, &norm_backward<double>);
SCRATCHNN_REGISTER_KERNEL(norm_backward_columns<BFloat16>, &norm_backward<BFloat16>);
SCRATCHNN_REGISTER_KERNEL(norm_backward_columns<Half>, &norm_backward<Half>);

}  // namespace CPU_CAPABILITY
}  // namespace scratchnn
