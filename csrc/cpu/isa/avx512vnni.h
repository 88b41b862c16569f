// As AVX-512; products of bytes are one instruction.
#pragma once

#include "cpu/isa/avx512.h"
