// A catalog in strips: as many of its items at a time as stay in the second-level cache, rounded once to
// the type that tiles multiply, in rows of whole cache lines. Where many queries meet tables of another
// type or alignment, a scan would round the same items anew for each tile of queries; a strip's it copies.
//
//   const Strips strips(launch, tables, batch);
//   if (launch.measuring()) return;
//   for (int64_t first = 0; first < tables.rows; first += strips.length()) {
//     const Tables strip = strips.at(launch, op, first);  // and a scan of it, on the same stream
//   }
//
// A strip is a pair of tables, and a scan of it computes what one of the tables themselves does, bit for
// bit. With cosine it is not divided by norms, which are factors of scores. For bulk_scan.cuh it is a
// sequence of tiles instead: of kStripStep items their first pieces, their second ones, ...
//
// Scratch memory: kStripBytes, or what kStripStep items take; none where tables are read as they lie.
#pragma once

#include <cstdint>

#include "cuda/rows.cuh"

namespace alphafuse {
namespace cuda {

constexpr int64_t kStripStep = 128;                              // items: whole tiles
constexpr int64_t kStripBytes = kEmulated ? 64 << 10 : 8 << 20;  // of two strips a cache has room
// Nothing is multiplied while a strip is written: fewer queries gain less than that takes, by the model
// of bench/results/sass-notes.md. Rows that a tile reads element by element cost it twice as much.
constexpr int64_t kLeastQueriesOfStrips = kEmulated ? 64 : 2048;
constexpr int64_t kLeastQueriesOfOddRows = kEmulated ? 64 : 512;
constexpr int kLineBytes = 128;  // rows are filled up to whole ones, with zeros

// The rows [first, first + count) of the tables.
Tables rows_of(Tables tables, int64_t first, int64_t count);

class Strips {
 public:
  // Of at most `most` items, or kStripStep; in tiles it is written whatever the tables are.
  Strips(Launch& launch, const Tables& tables, int64_t batch, int64_t most = INT64_MAX,
         bool in_tiles = false);

  // Of every strip but the last, a multiple of kStripStep; all are about as long as each other.
  int64_t length() const { return length_; }
  // Of the longest strip, as the tables have them.
  Tables longest() const { return rows_of(tables_, 0, min(length_, tables_.rows)); }
  // That which begins with row `first`; the one before is overwritten.
  Tables at(Launch& launch, const char* op, int64_t first) const;
  // That which at() has written in tiles, with rows of zeros up to a whole one; what it returned is where
  // the same rows lie.
  const void* tiles() const { return memory_; }

 private:
  Tables tables_;
  int64_t length_;
  bool in_tiles_;
  bool copies_;  // else the tables are read as they lie
  DType dtype_;  // of the copies
  int64_t second_from_, stride_;
  void* memory_ = nullptr;
};

}  // namespace cuda
}  // namespace alphafuse
