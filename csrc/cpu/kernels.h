// The CPU's kernels: declared in the namespace of each instruction set, where a kernel file sees
// them, and a table of pointers to those of one set. To add one is to add it to kernels.def, and
// its file to CMakeLists.txt.
#pragma once

#include "array.h"
#include "compressed.h"
#include "cpu/exclude.h"
#include "cpu/grouping.h"
#include "cpu/integer_product.h"
#include "cpu/pair_product.h"
#include "launch.h"

namespace alphafuse {

struct Kernels {
  const char* isa;
  const IntegerProduct* integer_product;
  PairProduct* pair_product;
#define KERNEL(result, name, ...) result (*name)(__VA_ARGS__, int threads);
#define PRODUCT_KERNEL(result, name, ...) result (*name)(__VA_ARGS__, Workers workers);
#include "kernels.def"
};

#if defined(ALPHAFUSE_ISA)
// Of a set with products of integers and pairs alone (CMakeLists.txt) they are another's.
namespace ALPHAFUSE_BASE {

#define KERNEL(result, name, ...) result name(__VA_ARGS__, int threads);
#define PRODUCT_KERNEL(result, name, ...) result name(__VA_ARGS__, Workers workers);
#include "kernels.def"

}  // namespace ALPHAFUSE_BASE

namespace ALPHAFUSE_ISA {

extern const IntegerProduct kIntegerProduct;
PairProduct pair_product;
extern const Kernels kTable;

}  // namespace ALPHAFUSE_ISA
#endif

}  // namespace alphafuse
