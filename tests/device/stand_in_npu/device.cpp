// A second device for torch: tensors of type "npu" whose memory is the host's. Operators run on the
// processor through torch's own fallback, after a check that a real NPU would also make: all
// tensors of a call are on the device. So a trainer that forgets to move a tensor fails here too.
#include <map>
#include <mutex>
#include <string>

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

namespace {

constexpr auto kNpu = c10::DeviceType::PrivateUse1;
constexpr c10::DeviceIndex kDevices = 2;
thread_local c10::DeviceIndex current = 0;
thread_local c10::StreamId streams[kDevices] = {0, 0};

// -- memory: the host's, with a device's name on it ------------------------------------------
struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes ? c10::GetCPUAllocator()->raw_allocate(bytes) : nullptr;
    return {data, data, &release, c10::Device(kNpu, current)};
  }
  static void release(void* data) {
    if (data) c10::GetCPUAllocator()->raw_deallocate(data);
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};
Memory memory;
REGISTER_ALLOCATOR(kNpu, &memory);

// -- current device and stream: all work is done when it is submitted ------------------------
struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kNpu; }
  c10::Device exchangeDevice(c10::Device to) const override {
    auto before = getDevice();
    setDevice(to);
    return before;
  }
  c10::Device getDevice() const override { return {kNpu, current}; }
  void setDevice(c10::Device to) const override {
    TORCH_CHECK(to.index() < kDevices, "no such npu: ", static_cast<int>(to.index()));
    if (to.index() >= 0) current = to.index();
  }
  void uncheckedSetDevice(c10::Device to) const noexcept override {
    if (to.index() >= 0) current = to.index();
  }
  c10::Stream at(c10::Device device) const {
    auto index = device.index() < 0 ? current : device.index();
    return c10::Stream(c10::Stream::UNSAFE, {kNpu, index}, streams[index]);
  }
  c10::Stream getStream(c10::Device device) const override { return at(device); }
  c10::Stream getDefaultStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::UNSAFE, {kNpu, device.index() < 0 ? current : device.index()}, 0);
  }
  c10::Stream exchangeStream(c10::Stream to) const override {
    auto before = at(to.device());
    streams[to.device_index()] = to.id();
    return before;
  }
  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }
  void record(void** event, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag)
      const override {
    *event = &current;  // any address: there is nothing to wait for
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return kDevices; }
  c10::DeviceIndex getCurrentDevice() const override { return current; }
  void setCurrentDevice(c10::DeviceIndex to) const override { current = to; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex to) const override {
    return std::exchange(current, to);
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex to) const override {
    return std::exchange(current, to);
  }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto moved = memory.allocate(bytes);
    auto kept = std::min(bytes, storage.nbytes());
    if (kept) std::memcpy(moved.get(), storage.data(), kept);
    storage.unsafeGetStorageImpl()->set_data_ptr(std::move(moved));
    storage.unsafeGetStorageImpl()->set_nbytes(bytes);
  }
};

// -- tensors ---------------------------------------------------------------------------------
at::Tensor host(const at::Tensor& tensor) {
  // the same memory as a tensor of the processor; it keeps the other one alive
  auto options = tensor.options().device(at::kCPU).requires_grad(false);
  return at::from_blob(
      tensor.data_ptr(), tensor.sizes(), tensor.strides(), [tensor](void*) {}, options);
}

at::Tensor empty(
    c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<at::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  c10::DeviceGuard there(device.value_or(at::Device(kNpu, current)));
  return at::detail::empty_generic(
      C10_AS_INTARRAYREF_SLOW(size), &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
      c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(
    c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
    std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>) {
  c10::DeviceGuard there(device.value_or(at::Device(kNpu, current)));
  return at::detail::empty_strided_generic(
      C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &memory,
      c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype));
}

at::Tensor on_host(const at::Tensor& tensor) {
  return tensor.device().type() == kNpu ? host(tensor) : tensor;
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  auto target = on_host(to);
  target.copy_(on_host(from));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar item(const at::Tensor& tensor) { return host(tensor).item(); }

at::Tensor as_strided(
    const at::Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
    std::optional<c10::SymInt> offset) {
  std::optional<int64_t> at_element;
  if (offset) at_element = offset->expect_int();
  return at::native::as_strided_tensorimpl(
      self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), at_element);
}

at::Tensor view(const at::Tensor& self, c10::SymIntArrayRef size) {
  return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size));
}

at::Tensor reshape_alias(
    const at::Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return at::native::_reshape_alias(
      self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}

const at::Tensor& resize(
    const at::Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat> format) {
  return at::native::resize_(self, C10_AS_INTARRAYREF_SLOW(size), format);
}

at::Tensor& set_storage(
    at::Tensor& self, at::Storage storage, c10::SymInt offset, c10::SymIntArrayRef size,
    c10::SymIntArrayRef stride) {
  return at::native::set_storage_cpu_(
      self, storage, offset.expect_int(), C10_AS_INTARRAYREF_SLOW(size),
      C10_AS_INTARRAYREF_SLOW(stride));
}

// nothing is freed while it is in use: the host waits for every operator
void record_stream(at::Tensor& self, c10::Stream stream) {
  TORCH_CHECK(stream.device_type() == kNpu, "record_stream: no stream of an npu");
}

// -- every other operator: on the processor, if all its tensors are on the device --------------
std::mutex lock;
std::map<std::string, int64_t> counts;

void on_processor(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& name = op.schema().operator_name().name;
  for (const auto& value : torch::jit::last(*stack, op.schema().arguments().size())) {
    if (value.isTensor() && value.toTensor().defined()) {
      const auto& tensor = value.toTensor();
      TORCH_CHECK(
          tensor.device().type() == kNpu || tensor.dim() == 0,
          name, ": a tensor of shape ", tensor.sizes(), " is on ", tensor.device(),
          ", others are on the npu");
    }
  }
  {
    std::lock_guard<std::mutex> locked(lock);
    counts[name]++;
  }
  at::native::cpu_fallback(op, stack);
}

c10::Dict<std::string, int64_t> counted() {
  std::lock_guard<std::mutex> locked(lock);
  c10::Dict<std::string, int64_t> found;
  for (const auto& [name, times] : counts) found.insert(name, times);
  return found;
}

int64_t current_stream() { return streams[current]; }
void set_stream(int64_t id) { streams[current] = id; }
int64_t current_device() { return current; }
void set_device(int64_t index) { Guard().setDevice({kNpu, static_cast<c10::DeviceIndex>(index)}); }
void hook() {
  static Hooks hooks;
  if (!at::isPrivateUse1HooksRegistered()) at::RegisterPrivateUse1HooksInterface(&hooks);
}

}  // namespace

TORCH_LIBRARY(stand_in, m) {
  m.def("host(Tensor tensor) -> Tensor");
  m.def("counts() -> Dict(str, int)", &counted);
  m.def("current_stream() -> int", &current_stream);
  m.def("set_stream(int id) -> ()", &set_stream);
  m.def("current_device() -> int", &current_device);
  m.def("set_device(int index) -> ()", &set_device);
  m.def("hook() -> ()", &hook);
}

TORCH_LIBRARY_IMPL(stand_in, PrivateUse1, m) { m.impl("host", &host); }
TORCH_LIBRARY_IMPL(stand_in, CPU, m) { m.impl("host", &on_host); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &item);
  m.impl("as_strided", &as_strided);
  m.impl("view", &view);
  m.impl("_reshape_alias", &reshape_alias);
  m.impl("record_stream", &record_stream);
  m.impl("resize_", &resize);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_processor>());
}
