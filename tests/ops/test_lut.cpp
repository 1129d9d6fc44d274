// LUT layers against the float64 oracle: rows, sparse, sequences, product modes, fixed point.
#include "ops/lut_support.h"

namespace trivium::testing {
namespace {

class File {
 public:
  explicit File(const std::string& name) : golden_(name) {}
  ~File() { EXPECT_GT(case_, 1) << "no cases in the golden file"; }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  bool next() { return golden_.has(concat(++case_, ".x")); }
  std::string name(const std::string& key) const { return concat(case_, '.', key); }
  bool has(const std::string& key) const { return golden_.has(name(key)); }
  Tensor host(const std::string& key) const { return golden_.host(name(key)); }
  Tensor device(const std::string& key) const { return golden_.device(name(key)); }
  std::vector<double> doubles(const std::string& key) const { return golden_.doubles(name(key)); }

  lut::LayerOptions options() const {
    lut::LayerOptions o;
    o.anchors = host("anchors");
    o.inputs = host("x").dim(-1);
    o.outputs = has("y") ? host("y").dim(-1) : 0;
    if (has("eps")) o.cmp_eps = host("eps").data_as<float>()[0];
    if (has("lr") && host("lr").numel() == 1) o.learning_rate = host("lr").data_as<float>()[0];
    if (host("x").rank() == 3) {
      o.mode = lut::Mode::sequence;
      o.sequence_length = host("x").dim(1);
      if (has("pe")) o.positional_dim = host("pe").dim(2);
    }
    return o;
  }
  Tensor pe() const { return has("pe") ? device("pe") : Tensor(); }

  void expect_indices(const lut::Saved& saved, const std::string& prefix) const {
    const Tensor* got[] = {&saved.index, &saved.min_index, &saved.min_delta};
    if (!prefix.empty()) got[0] = &saved.pe_index, got[1] = &saved.pe_min_index, got[2] = &saved.pe_min_delta;
    EXPECT_EQ(values_of<int32_t>(*got[0]), values_of<int32_t>(host(prefix + "index"))) << name("index");
    EXPECT_EQ(values_of<int32_t>(*got[1]), values_of<int32_t>(host(prefix + "min_index")));
    EXPECT_EQ(values_of<float>(*got[2]), values_of<float>(host(prefix + "min_delta")));
  }

 private:
  Golden golden_;
  int case_ = -1;
};

void expect_golden(const File& f, const lut::LayerOptions& options, bool indices) {
  const lut::Layer layer(options, test_device());
  lut::Workspace work(test_device());
  const Tensor w = f.device("w"), gy = f.device("gy");
  const auto forward = lut::forward(layer, w, f.device("x"), f.pe(), true, work);
  if (indices) f.expect_indices(forward.saved, "");
  if (indices && f.has("pe")) f.expect_indices(forward.saved, "pe_");
  expect_close(forward.y, f.doubles("y"), kLut, f.name("y"));
  const auto gradients = lut::backward(layer, w, gy, forward.saved, {}, work);
  expect_close(gradients.gx, f.doubles("gx"), kLut, f.name("gx"));
  if (f.has("pe")) expect_close(gradients.gpe, f.doubles("gpe"), kLut, f.name("gpe"));
  if (!f.has("gw_rows")) {
    expect_close(gradients.gw, f.doubles("gw"), kLut, f.name("gw"));
    return;
  }
  // The golden file lists the rows that have a gradient; the others are exactly zero.
  const auto rows = lut::backward(layer, w, gy, forward.saved, {.policy = lut::WeightPolicy::rows}, work);
  EXPECT_EQ(values_of<int64_t>(rows.rows), values_of<int64_t>(f.host("gw_rows"))) << f.name("rows");
  expect_close(rows.gw, f.doubles("gw"), kLut, f.name("gw"));
  const Tensor dense =
      gradients.gw.to(Device{}).reshape({layer.num_tables() * layer.cells(), options.outputs});
  double inside = 0, all = 0;
  for (const double v : doubles_of(rows.gw)) inside += std::abs(v);
  for (const double v : doubles_of(dense)) all += std::abs(v);
  EXPECT_EQ(all, inside) << f.name("gw outside the rows");
}

TEST(Lut, RowsMatchTheOracle) {
  for (File f("lut_rows"); f.next();) expect_golden(f, f.options(), true);
}

TEST(Lut, SequencesMatchTheOracle) {
  for (File f("lut_sequence"); f.next();) expect_golden(f, f.options(), true);
}

TEST(Lut, SparseRowsMatchTheOracle) {
  for (File f("lut_sparse"); f.next();) {
    lut::LayerOptions o = f.options();
    o.outputs = f.host("outputs").data_as<int64_t>()[0];
    o.pointers = f.host("pointers");
    o.targets = f.host("targets");
    o.rates = f.host("lr");
    expect_golden(f, o, false);
  }
}

TEST(Lut, ProductModesMatchTheOracle) {
  for (File f("lut_product"); f.next();) {
    lut::LayerOptions o = f.options();
    o.mode = f.host("sliced").data_as<int64_t>()[0] ? lut::Mode::sliced : lut::Mode::product;
    expect_golden(f, o, false);
  }
}

TEST(Lut, FixedPointOutputsHaveTheOraclesBits) {
  for (File f("lut_fixed"); f.next();) {
    lut::LayerOptions o = f.options();
    o.int_rescaler = f.host("numbers").data_as<double>()[0];
    o.group_size = static_cast<int64_t>(f.host("numbers").data_as<double>()[1]);
    const lut::Layer layer(o, test_device());
    lut::Workspace work(test_device());
    const auto forward = lut::forward(layer, f.device("w"), f.device("x"), {}, false, work);
    expect_same(forward.y, f.host("y"), f.name("y"));
  }
}

// All four forms of a layer in fixed point give what the CPU gives, bit for bit, and stay within the
// quanta of float mode.
TEST(Lut, FixedPointIsTheSameOnEveryBackend) {
  std::vector<LutCase> cases;
  cases.emplace_back(rows_layer(9, 37, 3, 33), 5, 10);
  cases.emplace_back(sequence_layer(6, 3, 2, 2, 10, 6), 2, 20);
  cases.emplace_back(product_layer(3, 3, 3, 3, 5, 4, true), 2, 30);
  cases.emplace_back(rows_layer(9, 7, 3, 33), 5, 40);
  make_sparse(
      cases.back(), [](int64_t row, int64_t o) { return (row * 7 + o * 3) % 4 == 0; }, false);
  for (LutCase& c : cases) {
    const auto plain = c.forward();
    const auto plain_gradients = c.backward(plain.saved);
    c.options.int_rescaler = 10;
    c.rebuild();
    const auto forward = c.forward();
    const auto gradients = c.backward(forward.saved);
    const double quantum = 1 / ((1 << 20) - 1.0) / 10 * 200;
    const auto near = [&](const Tensor& got, const Tensor& want, const char* what) {
      const auto a = doubles_of(got), b = doubles_of(want);
      ASSERT_EQ(a.size(), b.size());
      for (size_t i = 0; i < a.size(); ++i)
        ASSERT_NEAR(a[i], b[i], quantum + 1e-5 * (1 + std::abs(b[i]))) << what << ' ' << i;
    };
    near(forward.y, plain.y, "y");
    near(gradients.gx, plain_gradients.gx, "gx");
    near(gradients.gw, plain_gradients.gw, "gw");
    if (c.pe.rank()) near(gradients.gpe, plain_gradients.gpe, "gpe");

    const lut::Layer layer(c.options, Device{});
    lut::Workspace work{Device{}};
    const auto cpu = lut::forward(layer, c.w, c.x, c.pe, true, work);
    const auto cpu_gradients = lut::backward(layer, c.w, c.gy, cpu.saved, {}, work);
    expect_same(forward.y, cpu.y, "y");
    expect_same(gradients.gx, cpu_gradients.gx, "gx");
    expect_same(gradients.gw, cpu_gradients.gw, "gw");
    if (c.pe.rank()) expect_same(gradients.gpe, cpu_gradients.gpe, "gpe");
  }
}

// Float mode: every element has one owner and one order, so backends agree in every bit.
TEST(Lut, FloatModeHasTheCpusBits) {
  std::vector<LutCase> cases;
  cases.emplace_back(rows_layer(9, 33, 3, 257), 5, 10);
  cases.emplace_back(rows_layer(5, 3, 4, 31), 70, 10);
  cases.emplace_back(sequence_layer(6, 3, 2, 2, 33, 6), 2, 20);
  cases.emplace_back(product_layer(3, 3, 3, 2, 5, 4, false), 2, 30);
  for (const LutCase& c : cases) {
    const auto forward = c.forward();
    const auto gradients = c.backward(forward.saved);
    const lut::Layer layer(c.options, Device{});
    lut::Workspace work{Device{}};
    const auto cpu = lut::forward(layer, c.w, c.x, c.pe, true, work);
    const auto cpu_gradients = lut::backward(layer, c.w, c.gy, cpu.saved, {}, work);
    expect_same(forward.y, cpu.y, "y");
    expect_same(gradients.gx, cpu_gradients.gx, "gx");
    expect_same(gradients.gw, cpu_gradients.gw, "gw");
    if (c.pe.rank()) expect_same(gradients.gpe, cpu_gradients.gpe, "gpe");
  }
}

}  // namespace
}  // namespace trivium::testing
