// Memory of small objects that come and go with every operator: the handles behind tensors.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <utility>

namespace pronghorn {

#if defined(__has_feature)
#define PRONGHORN_HAS_FEATURE(name) __has_feature(name)
#else
#define PRONGHORN_HAS_FEATURE(name) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || \
    PRONGHORN_HAS_FEATURE(address_sanitizer) || PRONGHORN_HAS_FEATURE(thread_sanitizer)
constexpr bool kReuseBlocks = false;  // let the sanitizer see every use after free
#else
constexpr bool kReuseBlocks = true;
#endif
#undef PRONGHORN_HAS_FEATURE

// An allocator of single objects that keeps what is freed, per thread and type, and hands it out
// again. A thread that ends gives back what it keeps; an object that outlives that is freed at
// once.
template <typename T>
class PooledAllocator {
 public:
  using value_type = T;

  PooledAllocator() = default;
  template <typename U>
  PooledAllocator(const PooledAllocator<U>&) {}

  T* allocate(size_t count) {
    if (!kReuseBlocks || count != 1 || free_ == nullptr) {
      return static_cast<T*>(::operator new(count * sizeof(Slot)));
    }
    return reinterpret_cast<T*>(std::exchange(free_, free_->next));
  }

  void deallocate(T* pointer, size_t count) {
    if (!kReuseBlocks || count != 1 || ended_) {
      ::operator delete(pointer);
      return;
    }
    if (free_ == nullptr) {
      static thread_local const AtEnd at_end;
    }
    free_ = ::new (static_cast<void*>(pointer)) Slot{free_};
  }

  template <typename U>
  bool operator==(const PooledAllocator<U>&) const {
    return true;
  }

 private:
  union Slot {
    Slot* next;
    alignas(T) std::byte bytes[sizeof(T)];
  };
  struct AtEnd {
    AtEnd() {}
    ~AtEnd() {
      ended_ = true;
      while (free_ != nullptr) ::operator delete(std::exchange(free_, free_->next));
    }
  };
  // Both are trivial: they can be used after every destructor of the thread.
  static inline thread_local Slot* free_ = nullptr;
  static inline thread_local bool ended_ = false;
};

// std::make_shared from the pool.
template <typename T, typename... Args>
std::shared_ptr<T> make_pooled(Args&&... args) {
  return std::allocate_shared<T>(PooledAllocator<T>(), std::forward<Args>(args)...);
}

}  // namespace pronghorn
