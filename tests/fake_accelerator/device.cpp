// A second device on the host's own memory, for tests of device placement: PyTorch's PrivateUse1 backend.
//
// Every operator runs the CPU's kernel on aliases of the same memory, so numbers are the CPU's, and costs nearly so.
// What an accelerator refuses is refused: a mixture of devices, a CPU generator, more memory than a limit. What it pays for
// is counted: copies in bytes, waits of the host, device memory.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/ops/_local_scalar_dense_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>

namespace at::autocast {
TORCH_API at::ScalarType get_autocast_dtype(at::DeviceType device_type);
}
namespace at::native {
TORCH_API void resize_bytes_cpu(c10::StorageImpl* storage, size_t size_bytes);
}

namespace {

using c10::DeviceType;
using c10::IValue;
constexpr auto kFake = DeviceType::PrivateUse1;
const c10::Device kDevice(kFake, 0);

// ---------------------------------------------------------------------------------------------------------- counters

struct Counts {
  std::atomic<int64_t> syncs{0}, to_device{0}, to_device_bytes{0}, to_host{0}, to_host_bytes{0}, within_bytes{0};
  std::atomic<int64_t> operators{0}, allocated{0}, peak{0};
} counts;

std::atomic<int64_t> limit{0};          // bytes of device memory; 0: as much as the host has
std::atomic<bool> available{false};     // what torch.accelerator.is_available() says

using Callback = void (*)(const char* kind, const char* op, int64_t bytes);
std::atomic<Callback> callback{nullptr};

void report(const char* kind, const char* op, int64_t bytes) {
  if (auto call = callback.load()) call(kind, op, bytes);
}

void count_sync(const char* op) {
  ++counts.syncs;
  report("sync", op, 0);
}

void grown(int64_t bytes) {
  const int64_t now = counts.allocated += bytes;
  const int64_t most = limit.load();
  if (most && now > most) {
    counts.allocated -= bytes;
    TORCH_CHECK_WITH(OutOfMemoryError, false, "fakegpu out of memory. Tried to allocate ", bytes, " bytes: ",
                     now - bytes, " of ", most, " are in use");
  }
  int64_t peak = counts.peak.load();
  while (now > peak && !counts.peak.compare_exchange_weak(peak, now)) {
  }
}

// ------------------------------------------------------------------------------------------------------------ memory

struct Block {  // what a device pointer owns: plain memory, or the CPU storage that an operator returned
  void* memory;
  c10::Storage held;
  int64_t bytes;
};

void release(void* context) {
  auto* block = static_cast<Block*>(context);
  counts.allocated -= block->bytes;
  if (block->memory) c10::free_cpu(block->memory);
  delete block;
}

struct FakeAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* memory = bytes ? c10::alloc_cpu(bytes) : nullptr;
    grown(static_cast<int64_t>(bytes));
    return {memory, new Block{memory, {}, static_cast<int64_t>(bytes)}, &release, kDevice};
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return nullptr;
  }
  void copy_data(void* target, const void* source, size_t bytes) const override {
    default_copy_data(target, source, bytes);
  }
} allocator;
REGISTER_ALLOCATOR(kFake, &allocator);

c10::DataPtr adopt(c10::Storage cpu) {
  void* data = cpu.mutable_data();
  const auto bytes = static_cast<int64_t>(cpu.nbytes());
  grown(bytes);
  return {data, new Block{nullptr, std::move(cpu), bytes}, &release, kDevice};
}

// -------------------------------------------------------------------------------------------------------- generators

struct FakeGenerator final : c10::GeneratorImpl {
  at::Generator inner;  // the CPU generator that draws
  explicit FakeGenerator(uint64_t seed = c10::default_rng_seed_val)
      : c10::GeneratorImpl(kDevice, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)),
        inner(at::detail::createCPUGenerator(seed)) {}
  void set_current_seed(uint64_t seed) override { inner.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { inner.set_offset(offset); }
  uint64_t get_offset() const override { return inner.get_offset(); }
  uint64_t current_seed() const override { return inner.current_seed(); }
  uint64_t seed() override { return inner.seed(); }
  void set_state(const c10::TensorImpl& state) override { inner.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return inner.unsafeGetGeneratorImpl()->get_state(); }
  static DeviceType device_type() { return kFake; }
 private:
  FakeGenerator* clone_impl() const override {
    auto* copy = new FakeGenerator();
    copy->inner = inner.clone();
    return copy;
  }
};

const at::Generator& default_generator() {
  static const at::Generator generator = at::make_generator<FakeGenerator>();
  return generator;
}

at::Generator inner_of(const at::Generator& generator) {
  return static_cast<FakeGenerator*>(generator.unsafeGetGeneratorImpl())->inner;
}

// ------------------------------------------------------------------------------------------------ what PyTorch asks of

struct FakeGuard final : c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return kFake; }
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, kDevice); }
  c10::Stream getDefaultStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, kDevice); }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool) const override { return c10::Stream(c10::Stream::DEFAULT, kDevice); }
  c10::Stream getNewStream(c10::Device, int) const override { return c10::Stream(c10::Stream::DEFAULT, kDevice); }
  c10::Stream exchangeStream(c10::Stream) const override { return c10::Stream(c10::Stream::DEFAULT, kDevice); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override { count_sync("synchronize"); }
  void synchronizeEvent(void*) const override { count_sync("synchronize"); }
  void synchronizeDevice(const c10::DeviceIndex) const override { count_sync("synchronize"); }
  double elapsedTime(void*, void*, const c10::DeviceIndex) const override { return 0; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, FakeGuard)

struct FakeHooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return available.load(); }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return available.load() ? 1 : 0; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override { return default_generator(); }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::make_generator<FakeGenerator>(); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  c10::Device getDeviceFromPtr(void*) const override { return kDevice; }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    at::native::resize_bytes_cpu(storage.unsafeGetStorageImpl(), bytes);
  }
};

// --------------------------------------------------------------------------------------------------- aliases and back

bool on_device(const at::Tensor& tensor) {
  return tensor.defined() && tensor.device().type() == kFake;
}

struct Aliases {  // CPU tensors over the memory of device tensors, and the way back
  std::vector<std::pair<c10::StorageImpl*, c10::Storage>> storages;  // device storage, CPU storage over its memory
  std::vector<std::pair<at::Tensor, at::Tensor>> tensors;            // device tensor, CPU tensor

  at::Tensor to_cpu(const at::Tensor& tensor) {
    for (auto& [own, alias] : tensors)
      if (own.is_same(tensor)) return alias;
    TORCH_CHECK(tensor.layout() == at::kStrided, "fakegpu: only strided tensors");
    auto* storage = tensor.storage().unsafeGetStorageImpl();
    c10::Storage over;
    for (auto& [own, alias] : storages)
      if (own == storage) over = alias;
    if (!over) {
      auto* keep = new c10::Storage(tensor.storage());
      over = c10::Storage(c10::make_intrusive<c10::StorageImpl>(
          c10::StorageImpl::use_byte_size_t(), storage->nbytes(),
          c10::DataPtr(storage->mutable_data(), keep, [](void* k) { delete static_cast<c10::Storage*>(k); }, c10::kCPU),
          c10::GetCPUAllocator(), /*resizable=*/true));
      storages.emplace_back(storage, over);
    }
    auto alias = at::detail::make_tensor<c10::TensorImpl>(
        c10::Storage(over), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
    auto* impl = alias.unsafeGetTensorImpl();
    impl->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
    if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
    tensors.emplace_back(tensor, alias);
    return alias;
  }

  at::Tensor to_device(const at::Tensor& tensor) {
    if (!tensor.defined() || !tensor.is_cpu()) return tensor;
    for (auto& [own, alias] : tensors)
      if (alias.is_same(tensor)) return own;
    TORCH_CHECK(tensor.layout() == at::kStrided, "fakegpu: only strided results");
    auto* storage = tensor.storage().unsafeGetStorageImpl();
    c10::Storage under;
    for (auto& [own, alias] : storages)
      if (alias.unsafeGetStorageImpl() == storage)
        under = c10::Storage(c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(own));
    if (!under) {
      under = c10::Storage(c10::make_intrusive<c10::StorageImpl>(
          c10::StorageImpl::use_byte_size_t(), storage->nbytes(), adopt(tensor.storage()), &allocator, true));
      storages.emplace_back(under.unsafeGetStorageImpl(), tensor.storage());
    }
    auto result = at::detail::make_tensor<c10::TensorImpl>(
        std::move(under), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), tensor.dtype());
    result.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
    return result;
  }

  void write_back() {  // results given as arguments may have been resized
    for (auto& [own, alias] : storages) {
      auto* now = alias.unsafeGetStorageImpl();
      if (now->mutable_data() == own->mutable_data() || now->device_type() != c10::kCPU) continue;
      own->set_nbytes(now->nbytes());
      own->set_data_ptr_noswap(adopt(c10::Storage(c10::make_intrusive<c10::StorageImpl>(
          c10::StorageImpl::use_byte_size_t(), now->nbytes(), now->set_data_ptr(c10::DataPtr(nullptr, c10::kCPU)),
          c10::GetCPUAllocator(), true))));
    }
    for (auto& [own, alias] : tensors)
      if (own.sizes() != alias.sizes() || own.strides() != alias.strides())
        own.unsafeGetTensorImpl()->set_sizes_and_strides(alias.sizes(), alias.strides(), alias.storage_offset());
  }
};

// ------------------------------------------------------------------------------------------------- every operator's way

struct Facts {  // of an operator, found once
  bool pointwise, waits, index, seeded;
  int generator = -1;
};

const Facts& facts_of(const c10::OperatorHandle& op) {
  static std::mutex mutex;
  static std::unordered_map<const c10::FunctionSchema*, Facts> known;
  std::lock_guard<std::mutex> lock(mutex);
  auto [it, fresh] = known.try_emplace(&op.schema());
  if (fresh) {
    const auto& name = op.schema().name();
    static const std::unordered_set<std::string> scalars{
        "aten::fill_", "aten::fill", "aten::masked_fill", "aten::masked_fill_", "aten::index_fill",
        "aten::index_fill_", "aten::where"};
    auto& f = it->second;
    f.index = name == "aten::index" || name == "aten::index_put" || name == "aten::index_put_" ||
        name == "aten::_index_put_impl_" || name == "aten::_unsafe_index" || name == "aten::_unsafe_index_put";
    f.pointwise = op.hasTag(at::Tag::pointwise) || scalars.count(name) || name.rfind("aten::_foreach", 0) == 0;
    f.waits = !f.index && (op.hasTag(at::Tag::data_dependent_output) || op.hasTag(at::Tag::dynamic_output_shape));
    const auto& arguments = op.schema().arguments();
    for (size_t i = 0; i < arguments.size(); ++i)
      if (arguments[i].type()->str().find("Generator") != std::string::npos) f.generator = static_cast<int>(i);
    f.seeded = op.hasTag(at::Tag::nondeterministic_seeded) && f.generator < 0;
  }
  return it->second;
}

void check_and_alias(const c10::OperatorHandle& op, const Facts& facts, size_t number, const at::Tensor& tensor,
                     bool mixed, Aliases& aliases, at::Tensor& found) {
  found = tensor;
  if (!tensor.defined()) return;
  if (on_device(tensor)) {
    found = aliases.to_cpu(tensor);
    return;
  }
  const auto& argument = op.schema().arguments()[number];
  const bool written = argument.alias_info() && argument.alias_info()->isWrite();
  const bool wrapped = tensor.unsafeGetTensorImpl()->is_wrapped_number();
  if (!mixed || wrapped) return;
  if (facts.index && number == 1 && tensor.is_cpu()) {  // an accelerator copies the indices by itself
    const auto bytes = static_cast<int64_t>(tensor.nbytes());
    ++counts.to_device;
    counts.to_device_bytes += bytes;
    report("to_device", op.schema().name().c_str(), bytes);
    return;
  }
  if (tensor.is_cpu() && tensor.dim() == 0 && !written && (facts.pointwise || (facts.index && number == 2))) return;
  TORCH_CHECK(false, "Expected all tensors to be on the same device, but found at least two devices, fakegpu:0 and ",
              tensor.device(), "! (when checking argument ", argument.name(), " in method ", op.schema().name(), ")");
}

void run_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  at::AutoDispatchBelowADInplaceOrView below;
  const auto& schema = op.schema();
  const auto& facts = facts_of(op);
  const size_t arguments = schema.arguments().size(), first = stack->size() - arguments;
  ++counts.operators;

  bool any = false;
  for (size_t i = 0; i < arguments; ++i) {
    const IValue& value = (*stack)[first + i];
    if (value.isTensor()) any |= on_device(value.toTensor());
    else if (value.isTensorList()) for (const at::Tensor t : value.toTensorList()) any |= on_device(t);
    else if (value.isOptionalTensorList())
      for (const std::optional<at::Tensor> t : value.toOptionalTensorList()) any |= t && on_device(*t);
  }
  Aliases aliases;
  bool masks = false;
  for (size_t i = 0; i < arguments; ++i) {
    IValue& value = (*stack)[first + i];
    at::Tensor found;
    if (value.isTensor()) {
      check_and_alias(op, facts, i, value.toTensor(), any, aliases, found);
      value = std::move(found);
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor t : value.toTensorList()) {
        check_and_alias(op, facts, i, t, any, aliases, found);
        list.push_back(found);
      }
      value = std::move(list);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const std::optional<at::Tensor> t : value.toOptionalTensorList()) {
        if (t && t->defined()) {
          check_and_alias(op, facts, i, *t, any, aliases, found);
          masks |= on_device(*t) && (found.scalar_type() == at::kBool || found.scalar_type() == at::kByte);
          list.push_back(found);
        } else {
          list.push_back(std::nullopt);
        }
      }
      value = std::move(list);
    } else if (value.isDevice() && value.toDevice().type() == kFake) {
      value = c10::Device(c10::kCPU);
    } else if (static_cast<int>(i) == facts.generator) {
      if (value.isNone()) {
        value = inner_of(default_generator());
      } else {
        const auto given = value.toGenerator();
        TORCH_CHECK(given.device().type() == kFake, "Expected a 'fakegpu' device type for generator but found '",
                    given.device().type(), "'");
        value = inner_of(given);
      }
    }
  }
  if (facts.waits || masks) count_sync(schema.name().c_str());

  if (facts.seeded) {  // the CPU's kernel draws from the CPU's default generator: lend it the device's state
    static std::mutex mutex;
    std::lock_guard<std::mutex> lock(mutex);
    auto cpu = at::detail::getDefaultCPUGenerator();
    auto own = inner_of(default_generator());
    auto kept = cpu.get_state();
    cpu.set_state(own.get_state());
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
    own.set_state(cpu.get_state());
    cpu.set_state(kept);
  } else {
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  }

  aliases.write_back();
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); ++i) {
    IValue& value = (*stack)[i];
    if (value.isTensor()) {
      value = aliases.to_device(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor t : value.toTensorList()) list.push_back(aliases.to_device(t));
      value = std::move(list);
    }
  }
}

// ------------------------------------------------------------------------------------------- the few with ways of their own

at::Tensor empty_memory_format(c10::IntArrayRef size, std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>,
                               std::optional<c10::Device>, std::optional<bool>,
                               std::optional<c10::MemoryFormat> format) {
  return at::detail::empty_generic(size, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<c10::ScalarType> dtype,
                         std::optional<c10::Layout>, std::optional<c10::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &allocator,
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

at::Tensor& copy_(at::Tensor& self, const at::Tensor& source, bool non_blocking) {
  at::AutoDispatchBelowADInplaceOrView below;
  const bool to = on_device(self), from = on_device(source);
  const auto bytes = static_cast<int64_t>(source.nbytes());
  if (to && !from) {
    ++counts.to_device;
    counts.to_device_bytes += bytes;
    report("to_device", "aten::copy_", bytes);
  } else if (from && !to) {
    ++counts.to_host;
    counts.to_host_bytes += bytes;
    report("to_host", "aten::copy_", bytes);
    if (!non_blocking) count_sync("aten::copy_");
  } else {
    counts.within_bytes += bytes;
  }
  Aliases aliases;
  auto target = to ? aliases.to_cpu(self) : self;
  target.copy_(from ? aliases.to_cpu(source) : source);
  return self;
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& target, bool non_blocking) {
  auto result = target;
  return copy_(result, self, non_blocking);
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& target) {
  at::native::resize_(target, self.sizes(), std::nullopt);
  auto result = target;
  return copy_(result, self, false);
}

c10::Scalar local_scalar_dense(const at::Tensor& self) {
  count_sync("aten::item");
  Aliases aliases;
  return at::native::_local_scalar_dense_cpu(aliases.to_cpu(self));
}

void record_stream(at::Tensor&, c10::Stream) {}

// As for CUDA: `module.to(device)` then keeps its Parameters, and an optimiser that was made before it keeps working.
bool compatible(const at::Tensor& self, const at::Tensor& from) {
  return self.layout() == at::kStrided && from.layout() == at::kStrided;
}

template <bool kHalf>
void autocast(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  c10::impl::ExcludeDispatchKeyGuard without(c10::DispatchKey::AutocastPrivateUse1);
  const auto dtype = kHalf ? at::autocast::get_autocast_dtype(kFake) : at::kFloat;
  auto cast = [&](const at::Tensor& t) {
    if (!on_device(t) || !t.is_floating_point() || t.scalar_type() == at::kDouble || t.scalar_type() == dtype) return t;
    return t.to(dtype);
  };
  const size_t arguments = op.schema().arguments().size();
  for (size_t i = stack->size() - arguments; i < stack->size(); ++i) {
    IValue& value = (*stack)[i];
    if (value.isTensor()) {
      value = cast(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor t : value.toTensorList()) list.push_back(cast(t));
      value = std::move(list);
    }
  }
  op.callBoxed(stack);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {  // the lists of ATen/autocast_mode.h
  for (const char* name : {"_convolution", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d.input",
                           "conv_transpose3d.input", "convolution", "prelu", "addmm", "addmv", "addr", "matmul",
                           "einsum", "mm", "mv", "linear", "addbmm", "baddbmm", "bmm", "chain_matmul",
                           "scaled_dot_product_attention"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&autocast<true>>());
  for (const char* name : {"acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p",
                           "reciprocal", "rsqrt", "sinh", "tan", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar",
                           "softplus", "layer_norm", "native_layer_norm", "rms_norm", "group_norm", "cosine_similarity",
                           "nll_loss", "kl_div", "l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss",
                           "binary_cross_entropy_with_logits", "cdist", "logsumexp", "prod", "prod.dim_int",
                           "softmax.int", "log_softmax.int", "cumprod", "cumsum", "linalg_vector_norm", "sum",
                           "sum.dim_IntList", "norm.Scalar", "norm.ScalarOpt_dim", "upsample_nearest2d",
                           "upsample_bilinear2d", "upsample_bicubic2d"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&autocast<false>>());
}

FakeHooks hooks;

}  // namespace

extern "C" {

void fake_start() {  // after torch is loaded: every operator with a CPU kernel, in front of the composite ones
  at::RegisterPrivateUse1HooksInterface(&hooks);
  static auto* library =
      new torch::Library(torch::Library::IMPL, "aten", std::make_optional(c10::DispatchKey::PrivateUse1), __FILE__, 0);
  auto& m = *library;
  m.impl("empty.memory_format", empty_memory_format);
  m.impl("empty_strided", empty_strided);
  m.impl("copy_", copy_);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", local_scalar_dense);
  m.impl("record_stream", record_stream);
  m.impl("_has_compatible_shallow_copy_type", compatible);
  m.impl("resize_", at::native::resize_);
  m.impl("set_.source_Storage", static_cast<at::Tensor& (*)(at::Tensor&, at::Storage)>(at::native::set_));
  m.impl("set_.source_Storage_storage_offset", at::native::set_storage_cpu_);
  m.impl("set_.source_Tensor", at::native::set_tensor_);
  m.impl("set_", at::native::set_cpu_);
  static const std::unordered_set<std::string> own{
      "aten::empty.memory_format", "aten::empty_strided", "aten::copy_", "aten::_copy_from",
      "aten::_copy_from_and_resize", "aten::_local_scalar_dense", "aten::record_stream", "aten::resize_",
      "aten::set_.source_Storage", "aten::set_.source_Storage_storage_offset", "aten::set_.source_Tensor", "aten::set_",
      "aten::_pin_memory", "aten::is_pinned"};
  std::unordered_set<std::string> composite{"aten::convolution", "aten::convolution_backward"};
  for (const auto& name : c10::Dispatcher::singleton().getAllOpNames()) {
    const std::string full = name.overload_name.empty() ? name.name : name.name + "." + name.overload_name;
    if (full.rfind("aten::", 0) != 0 || own.count(full)) continue;
    auto op = c10::Dispatcher::singleton().findSchema(name);
    if (!op || !(op->hasKernelForDispatchKey(c10::DispatchKey::CPU) || composite.count(full))) continue;
    m.impl(full.substr(6).c_str(), torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
  }
}

void fake_read(int64_t* out) {
  const std::atomic<int64_t>* all[] = {&counts.syncs, &counts.to_device, &counts.to_device_bytes, &counts.to_host,
                                       &counts.to_host_bytes, &counts.within_bytes, &counts.operators,
                                       &counts.allocated, &counts.peak};
  for (auto* counter : all) *out++ = counter->load();
}

void fake_reset_peak() {
  counts.peak = counts.allocated.load();
}

void fake_callback(Callback call) {
  callback = call;
}

void fake_limit(int64_t bytes) {
  limit = bytes;
}

void fake_available(bool present) {
  available = present;
}
}
