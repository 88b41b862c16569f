// Pointers to the kernels of one instruction set.
#include "cpu/isa.h"
#include "cpu/kernels.h"

namespace alphafuse {
namespace ALPHAFUSE_ISA {

const Kernels kTable = {
    ALPHAFUSE_TEXT(ALPHAFUSE_ISA),
    &kIntegerProduct,
    &pair_product,
#define KERNEL(result, name, ...) ALPHAFUSE_BASE::name,
#include "kernels.def"
};

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
