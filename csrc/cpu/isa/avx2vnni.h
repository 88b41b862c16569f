// As AVX2; products of bytes are one instruction.
#pragma once

#include "cpu/isa/avx2.h"
