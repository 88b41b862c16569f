// Pointers to the kernels of one instruction set.
#include "cpu/kernels.h"

#define ALPHAFUSE_TEXT_OF(x) #x
#define ALPHAFUSE_TEXT(x) ALPHAFUSE_TEXT_OF(x)

namespace alphafuse {
namespace ALPHAFUSE_ISA {

const Kernels kTable = {
    ALPHAFUSE_TEXT(ALPHAFUSE_ISA),
#define KERNEL(result, name, ...) name,
#include "kernels.def"
};

}  // namespace ALPHAFUSE_ISA
}  // namespace alphafuse
