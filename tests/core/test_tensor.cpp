// Tensors: shared storage, views, strides, dtypes, and what is refused.
#include "core/tensor.h"

#include <numeric>

#include "core/stream.h"
#include "support/backend.h"

namespace trivium::testing {
namespace {

Tensor counting(const Shape& shape) {
  Tensor t = Tensor::empty(shape, Dtype::f32);
  std::iota(t.data_as<float>(), t.data_as<float>() + t.numel(), 0.0f);
  return t;
}

Tensor view(const Tensor& t, const Shape& shape, std::vector<int64_t> strides, int64_t offset = 0) {
  return Tensor::wrap(t.data_as<float>() + offset, shape, Dtype::f32, {}, t.owner(), strides);
}

TEST(Tensor, EmptyAndZerosAreContiguousAndAligned) {
  for (const Dtype dtype : {Dtype::f32, Dtype::u8, Dtype::f64})
    for (const Shape& shape : {Shape{}, Shape{1}, Shape{3, 5}, Shape{2, 0, 3}, Shape{7, 1, 1, 2}}) {
      const Tensor t = Tensor::zeros(shape, dtype);
      EXPECT_EQ(t.shape(), shape);
      EXPECT_EQ(t.nbytes(), shape.numel() * size_of(dtype));
      EXPECT_TRUE(t.defined() && t.is_contiguous() && !t.read_only());
      EXPECT_EQ(reinterpret_cast<uintptr_t>(t.data()) % kHostAlignment, 0u);
      const auto* bytes = static_cast<const uint8_t*>(t.data());
      EXPECT_TRUE(std::all_of(bytes, bytes + t.nbytes(), [](uint8_t b) { return b == 0; }));
    }
  EXPECT_EQ(Tensor().rank(), 0);
  EXPECT_FALSE(Tensor().defined());  // a scalar, above, has the same shape
}

TEST(Tensor, CopiesAndViewsShareStorageAndKeepItAlive) {
  auto owner = std::shared_ptr<float>(new float[6]{0, 1, 2, 3, 4, 5}, std::default_delete<float[]>());
  const std::weak_ptr<float> watch = owner;
  Tensor rows;
  {
    const Tensor t = Tensor::wrap(owner.get(), {3, 2}, Dtype::f32, {}, owner);
    owner.reset();
    rows = t.slice(1, 3);
    const Tensor flat = rows.reshape({4});
    flat.data_as<float>()[0] = 42;
  }
  EXPECT_FALSE(watch.expired());
  EXPECT_EQ(values_of<float>(rows), (std::vector<float>{42, 3, 4, 5}));
  rows = {};
  EXPECT_TRUE(watch.expired());
}

TEST(Tensor, SliceTakesRowsOfContiguousAndStridedTensors) {
  const Tensor t = counting({4, 3});
  EXPECT_EQ(values_of<float>(t.slice(1, 3)), (std::vector<float>{3, 4, 5, 6, 7, 8}));
  EXPECT_EQ(t.slice(4, 4).shape(), (Shape{0, 3}));
  const Tensor columns = view(t, {3, 4}, {1, 3}).slice(2, 3);  // the last column
  EXPECT_EQ(values_of<float>(columns), (std::vector<float>{2, 5, 8, 11}));
  expect_error([&] { t.slice(2, 1); }, {"slice: [2, 1)", "[4, 3]"});
  expect_error([&] { t.slice(0, 5); }, {"slice: [0, 5)"});
  expect_error([&] { t.slice(-1, 2); }, {"slice: [-1, 2)"});
  expect_error([] { Tensor::zeros({}, Dtype::f32).slice(0, 1); }, {"slice", "[]"});
}

TEST(Tensor, ContiguousGathersAnyStrides) {
  const Tensor t = counting({2, 3, 4});
  const Tensor turned = view(t, {4, 2, 3}, {1, 12, 4});
  EXPECT_FALSE(turned.is_contiguous());
  const auto got = values_of<float>(turned);
  size_t i = 0;
  for (int c = 0; c < 4; ++c)
    for (int a = 0; a < 2; ++a)
      for (int b = 0; b < 3; ++b) EXPECT_EQ(got[i++], static_cast<float>(a * 12 + b * 4 + c));
  EXPECT_EQ(values_of<float>(view(t, {3, 2}, {0, 1})), (std::vector<float>{0, 1, 0, 1, 0, 1}));  // broadcast
  EXPECT_EQ(values_of<float>(view(t, {4}, {-2}, 6)), (std::vector<float>{6, 4, 2, 0}));          // backwards
  const Tensor padded = view(t, {2, 2}, {12, 1});
  EXPECT_EQ(values_of<float>(padded), (std::vector<float>{0, 1, 12, 13}));
  EXPECT_EQ(padded.contiguous().strides()[0], 2);
  EXPECT_EQ(t.contiguous().data(), t.data()) << "no copy of what is contiguous";
  EXPECT_TRUE(view(t, {1, 4}, {99, 1}).is_contiguous()) << "the stride of an extent of 1 does not matter";
  EXPECT_TRUE(view(t, {3, 0}, {7, 9}).is_contiguous());
}

TEST(Tensor, ReshapeNeedsTheSameElementsInOrder) {
  const Tensor t = counting({2, 6});
  EXPECT_EQ(t.reshape({3, 4}).data(), t.data());
  EXPECT_EQ(t.reshape({3, 4}).strides()[0], 4);
  expect_error([&] { t.reshape({5}); }, {"reshape: [2, 6] has 12 elements, [5] has 5"});
  expect_error([&] { view(t, {6, 2}, {1, 6}).reshape({12}); }, {"reshape", "not contiguous"});
}

TEST(Tensor, DtypeConversionOfStridedTensorsKeepsOrder) {
  const Tensor t = view(counting({3, 2}), {2, 3}, {1, 2});
  const Tensor wide = t.to(Dtype::f64);
  EXPECT_EQ(values_of<double>(wide), (std::vector<double>{0, 2, 4, 1, 3, 5}));
  EXPECT_EQ(values_of<float>(wide.to(Dtype::bf16).to(Dtype::f32)), (std::vector<float>{0, 2, 4, 1, 3, 5}));
  EXPECT_EQ(t.to(Dtype::f32).data(), t.data()) << "no copy to the same dtype";
  EXPECT_EQ(t.to(Device{}).data(), t.data()) << "no copy to the same device";
}

TEST(Tensor, ReadOnlyStaysWithViews) {
  const Tensor t = counting({2, 2});
  const Tensor sealed = Tensor::wrap(t.data(), {2, 2}, Dtype::f32, {}, t.owner(), {}, true);
  EXPECT_TRUE(sealed.slice(0, 1).read_only() && sealed.reshape({4}).read_only());
}

TEST(Tensor, TypedPointersCheckTheDtype) {
  expect_error([] { Tensor::zeros({1}, Dtype::f32).data_as<double>(); }, {"float32", "not float64"});
}

TEST(Tensor, ShapesBeyondTheAddressSpaceAreRefused) {
  const int64_t big = int64_t{1} << 62;
  expect_error([&] { Tensor::empty({big}, Dtype::f32); },
               {"tensor: [4611686018427387904] float32", "address space"});
  expect_error([&] { Tensor::empty({big, 4}, Dtype::u8); }, {"2^63"});
  EXPECT_EQ(Tensor::empty({0, big, 4}, Dtype::f64).nbytes(), 0);
  EXPECT_EQ(Tensor::empty({big, 4, 0}, Dtype::f64).slice(0, 1).numel(), 0);
  expect_error(
      [] {
        Tensor::wrap(nullptr, {2, 2}, Dtype::f32, {}, nullptr, std::vector<int64_t>{1});
      },
      {"tensor: 1 strides for shape [2, 2]"});
}

TEST(Tensor, MoreMemoryThanThereIsIsOneSentenceWithBothSizes) {
  expect_error<OutOfMemory>([] { Tensor::empty({int64_t{1} << 50}, Dtype::u8); },
                            {"needs 1073741824 MiB of memory", "MiB are free"});
}

TEST(Stream, OfTheCpuNeedsNoWaiting) {
  Stream first{Device{}}, second{Device{}};
  Event event{Device{}};
  event.record(first);
  second.wait(event);
  second.synchronize();
  event.synchronize();
  EXPECT_EQ(second.device(), Device{});
}

}  // namespace
}  // namespace trivium::testing
