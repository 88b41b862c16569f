#include "cuda/tests/cute_layouts.h"

#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/mma_traits_sm80.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>

namespace alphafuse {
namespace cute_layouts {
namespace {

template <class Act>
int with_traits(Precision precision, const Act& act) {
  switch (precision) {
    case Precision::kBFloat16:
      return act(cute::MMA_Traits<cute::SM80_16x8x16_F32BF16BF16F32_TN>{});
    case Precision::kFloat16:
      return act(cute::MMA_Traits<cute::SM80_16x8x16_F32F16F16F32_TN>{});
    default:
      return act(cute::MMA_Traits<cute::SM80_16x8x8_F32TF32TF32F32_TN>{});
  }
}

}  // namespace

int a(Precision precision, int lane, int value) {
  return with_traits(precision, [=](auto traits) -> int {
    return typename decltype(traits)::ALayout{}(lane, value);
  });
}
int b(Precision precision, int lane, int value) {
  return with_traits(precision, [=](auto traits) -> int {
    return typename decltype(traits)::BLayout{}(lane, value);
  });
}
int c(Precision precision, int lane, int value) {
  return with_traits(precision, [=](auto traits) -> int {
    return typename decltype(traits)::CLayout{}(lane, value);
  });
}

int matrices(bool transposed, int lane, int bit) {
  return transposed ? cute::Copy_Traits<cute::SM75_U16x8_LDSM_T>::DstLayout{}(lane, bit)
                    : cute::Copy_Traits<cute::SM75_U32x4_LDSM_N>::DstLayout{}(lane, bit);
}

int group_c(int thread, int value) {
  using Operation = cute::SM90::GMMA::MMA_64x128x16_F32BF16BF16_SS<cute::SM90::GMMA::Major::K,
                                                                   cute::SM90::GMMA::Major::K>;
  return cute::MMA_Traits<Operation>::CLayout{}(thread, value);
}

int group_a(int thread, int value) {
  using Operation = cute::SM90::GMMA::MMA_64x64x16_F32BF16BF16_RS<cute::SM90::GMMA::Major::K,
                                                                  cute::SM90::GMMA::Major::MN>;
  return cute::MMA_Traits<Operation>::ALayout{}(thread, value);
}

// The host has no addresses of shared memory: CuTe says so, and takes 0.
unsigned long long descriptor_of_columns() {
  using namespace cute;
  constexpr int kPiece = 8, kPieceStride = kColumnPieceBytes / 2;  // elements
  using Columns =
      Layout<Shape<Shape<_8, _8>, Shape<_8, _2>>,
             Stride<Stride<_1, Int<kPieceStride>>, Stride<Int<kPiece>, Int<8 * kPiece>>>>;
  alignas(128) static bfloat16_t memory[8 * kPieceStride];
  const auto tensor = make_tensor(make_smem_ptr(memory), Columns{});
  return SM90::GMMA::make_gmma_desc<SM90::GMMA::Major::MN>(tensor).desc_;
}

unsigned long long descriptor(unsigned int address, int leading_bytes, int stride_bytes) {
  cute::GmmaDescriptor found;
  found.bitfield.start_address_ = static_cast<uint16_t>(address >> 4);
  found.bitfield.leading_byte_offset_ = static_cast<uint16_t>(leading_bytes >> 4);
  found.bitfield.stride_byte_offset_ = static_cast<uint16_t>(stride_bytes >> 4);
  found.bitfield.layout_type_ = static_cast<uint8_t>(cute::SM90::GMMA::LayoutType::INTERLEAVE);
  return found.desc_;
}

}  // namespace cute_layouts
}  // namespace alphafuse
