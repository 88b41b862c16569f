// Which instruction set's kernels run: the best the machine has, or the one asked for by name.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace alphafuse {

const Kernels& kernels();

std::vector<std::string> built_isas();
std::vector<std::string> supported_isas();  // those of them that this machine has, the best last

// An empty name asks for the best that has run on a processor. Not while a kernel runs. Throws
// std::invalid_argument for one that cannot be had.
void set_isa(const std::string& name);

}  // namespace alphafuse
