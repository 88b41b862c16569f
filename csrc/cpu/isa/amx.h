// AVX-512 with BF16 and VNNI; products of many rows by tiles. No machine so far has run it: what is
// tested is amx_emulated.h.
#pragma once

#define ALPHAFUSE_HAS_TILES
#include "cpu/isa/avx512bf16.h"
