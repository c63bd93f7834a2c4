/* gptr and sptr: pointers whose every access is checked. p[i] and *p are proxies: they read when
 * converted and write when assigned. */
#ifndef QEP_CUDA_EMU_POINTERS_H
#define QEP_CUDA_EMU_POINTERS_H

#include "cuda_emu/machine.h"

#include <type_traits>

template <class T> class gptr;
template <class T> class sptr;

namespace emu {

/* A read-only copy behind p->member. */
template <class T> struct arrow {
    std::remove_cv_t<T> copy;
    const T *operator->() const {
        return &copy;
    }
};

template <class P, class T> class ref {
    using value = std::remove_cv_t<T>;
    static_assert(std::is_trivially_copyable<value>::value, "memory holds plain values");

  public:
    explicit ref(P at) : at_(at) {
    }
    ref(const ref &) = default;
    operator value() const {
        return value_of();
    }
    value value_of() const {
        return emu::read<value>(at_.in(), at_.offset());
    }
    const ref &operator=(const value &v) const {
        static_assert(!std::is_const<T>::value, "a write through a pointer to const");
        emu::write<value>(at_.in(), at_.offset(), v);
        return *this;
    }
    const ref &operator=(const ref &other) const {
        return *this = static_cast<value>(other);
    }
    P operator&() const {
        return at_;
    }
#define EMU_COMPOUND(op)                                                                           \
    template <class V> const ref &operator op##=(const V &v) const {                               \
        return *this = static_cast<value>(static_cast<value>(*this) op v);                         \
    }
    EMU_COMPOUND(+)
    EMU_COMPOUND(-)
    EMU_COMPOUND(*)
    EMU_COMPOUND(/)
    EMU_COMPOUND(%)
    EMU_COMPOUND(&)
    EMU_COMPOUND(|)
    EMU_COMPOUND(^)
    EMU_COMPOUND(<<)
    EMU_COMPOUND(>>)
#undef EMU_COMPOUND
    value operator++(int) const {
        value v = *this;
        *this = static_cast<value>(v + 1);
        return v;
    }
    const ref &operator++() const {
        return *this += 1;
    }
    value operator--(int) const {
        value v = *this;
        *this = static_cast<value>(v - 1);
        return v;
    }
    const ref &operator--() const {
        return *this -= 1;
    }

  private:
    P at_;
};

/* The operators both kinds of pointer have. */
template <class P, class T> struct pointer_words {
    ref<P, T> operator*() const {
        return ref<P, T>(self());
    }
    arrow<T> operator->() const {
        return {static_cast<std::remove_cv_t<T>>(**this)};
    }
    template <class I> ref<P, T> operator[](I i) const {
        return ref<P, T>(self() + i);
    }
    template <class I> P operator+(I i) const {
        static_assert(std::is_convertible<I, ptrdiff_t>::value, "an index");
        return self().moved(static_cast<ptrdiff_t>(i) * static_cast<ptrdiff_t>(sizeof(T)));
    }
    template <class I> friend P operator+(I i, const pointer_words &p) {
        return p + i;
    }
    template <class I, class = std::enable_if_t<std::is_convertible<I, ptrdiff_t>::value>>
    P operator-(I i) const {
        return *this + -static_cast<ptrdiff_t>(i);
    }
    template <class I> P &operator+=(I i) {
        return static_cast<P &>(*this) = *this + i;
    }
    template <class I> P &operator-=(I i) {
        return static_cast<P &>(*this) = *this - i;
    }
    P &operator++() {
        return *this += 1;
    }
    P operator++(int) {
        P old = self();
        *this += 1;
        return old;
    }
    P &operator--() {
        return *this -= 1;
    }

  private:
    const P &self() const {
        return static_cast<const P &>(*this);
    }
};

} // namespace emu

/* Global memory. Remembers which allocation it came from; an offset into a neighbour is out of
 * bounds. */
template <class T> class gptr : public emu::pointer_words<gptr<T>, T> {
  public:
    gptr() = default;
    gptr(std::nullptr_t) {
    }
    gptr(T *p) : address_(reinterpret_cast<uintptr_t>(p)), in_(p ? emu::reachable(p) : nullptr) {
    }
    /* From T to const T by itself, to another type by a cast. */
    template <class U,
              std::enable_if_t<std::is_convertible<U *, T *>::value && !std::is_same<U, T>::value,
                               int> = 0>
    gptr(const gptr<U> &p) : address_(p.address()), in_(p.allocation()) {
    }
    template <class U, std::enable_if_t<!std::is_convertible<U *, T *>::value, int> = 0>
    explicit gptr(const gptr<U> &p) : address_(p.address()), in_(p.allocation()) {
    }
    template <class U, std::enable_if_t<!std::is_convertible<U *, T *>::value, int> = 0>
    explicit gptr(U *p) : gptr(reinterpret_cast<T *>(const_cast<std::remove_const_t<U> *>(p))) {
    }
    /* From an element of a table of pointers. */
    template <class P, class U,
              std::enable_if_t<std::is_convertible<std::remove_cv_t<U>, T *>::value, int> = 0>
    gptr(const emu::ref<P, U> &element) : gptr(static_cast<T *>(element.value_of())) {
    }
    template <class P, class U,
              std::enable_if_t<std::is_pointer<U>::value &&
                                   !std::is_convertible<std::remove_cv_t<U>, T *>::value,
                               int> = 0>
    explicit gptr(const emu::ref<P, U> &element) : gptr(element.value_of()) {
    }
    explicit operator bool() const {
        return address_ != 0;
    }
    /* The bare pointer (for tables of pointers; no access through it). */
    explicit operator T *() const {
        return reinterpret_cast<T *>(address_);
    }
    ptrdiff_t operator-(const gptr &p) const {
        return static_cast<ptrdiff_t>(address_ - p.address_) / static_cast<ptrdiff_t>(sizeof(T));
    }
    using emu::pointer_words<gptr<T>, T>::operator-;
    gptr moved(ptrdiff_t bytes) const {
        gptr p = *this;
        p.address_ += static_cast<uintptr_t>(bytes);
        return p;
    }
    uintptr_t address() const {
        return address_;
    }
    emu::allocation *allocation() const {
        return in_;
    }
    emu::allocation &in() const {
        return in_ ? *in_ : *emu::reachable(nullptr);
    }
    intptr_t offset() const {
        return static_cast<intptr_t>(address_ - in().lo);
    }

  private:
    uintptr_t address_ = 0;
    emu::allocation *in_ = nullptr;
};

/* Without elements: to be cast. */
template <class V> class emu_gptr_void {
  public:
    emu_gptr_void() = default;
    emu_gptr_void(std::nullptr_t) {
    }
    emu_gptr_void(V *p)
        : address_(reinterpret_cast<uintptr_t>(p)), in_(p ? emu::reachable(p) : nullptr) {
    }
    template <class U, std::enable_if_t<std::is_convertible<U *, V *>::value, int> = 0>
    emu_gptr_void(const gptr<U> &p) : address_(p.address()), in_(p.allocation()) {
    }
    explicit operator bool() const {
        return address_ != 0;
    }
    uintptr_t address() const {
        return address_;
    }
    emu::allocation *allocation() const {
        return in_;
    }

  private:
    uintptr_t address_ = 0;
    emu::allocation *in_ = nullptr;
};
template <> class gptr<void> : public emu_gptr_void<void> {
    using emu_gptr_void<void>::emu_gptr_void;
};
template <> class gptr<const void> : public emu_gptr_void<const void> {
    using emu_gptr_void<const void>::emu_gptr_void;
};

/* Shared memory of the running block: an array handed out by shared_arena, and a place in it. */
template <class T> class sptr : public emu::pointer_words<sptr<T>, T> {
  public:
    sptr() = default;
    sptr(std::nullptr_t) {
    }
    sptr(emu::allocation *array, intptr_t offset) : in_(array), offset_(offset) {
    }
    template <class U,
              std::enable_if_t<std::is_convertible<U *, T *>::value && !std::is_same<U, T>::value,
                               int> = 0>
    sptr(const sptr<U> &p) : in_(p.allocation()), offset_(p.offset()) {
    }
    template <class U, std::enable_if_t<!std::is_convertible<U *, T *>::value, int> = 0>
    explicit sptr(const sptr<U> &p) : in_(p.allocation()), offset_(p.offset()) {
    }
    explicit operator bool() const {
        return in_ != nullptr;
    }
    ptrdiff_t operator-(const sptr &p) const {
        return (offset_ - p.offset_) / static_cast<ptrdiff_t>(sizeof(T));
    }
    using emu::pointer_words<sptr<T>, T>::operator-;
    sptr moved(ptrdiff_t bytes) const {
        return sptr(in_, offset_ + bytes);
    }
    emu::allocation *allocation() const {
        return in_;
    }
    emu::allocation &in() const {
        return in_ ? *in_ : *emu::reachable(nullptr);
    }
    intptr_t offset() const {
        return offset_;
    }
    uintptr_t address() const {
        return in().lo + static_cast<uintptr_t>(offset_);
    }

  private:
    emu::allocation *in_ = nullptr;
    intptr_t offset_ = 0;
};

#define EMU_COMPARE(pointer, op)                                                                   \
    template <class T, class U> bool operator op(const pointer<T> &a, const pointer<U> &b) {       \
        return a.address() op b.address();                                                         \
    }
#define EMU_COMPARE_NULL(pointer)                                                                  \
    template <class T> bool operator==(const pointer<T> &a, std::nullptr_t) {                      \
        return !a;                                                                                 \
    }                                                                                              \
    template <class T> bool operator!=(const pointer<T> &a, std::nullptr_t) {                      \
        return !!a;                                                                                \
    }
EMU_COMPARE(gptr, ==)
EMU_COMPARE(gptr, !=)
EMU_COMPARE(gptr, <)
EMU_COMPARE(gptr, <=)
EMU_COMPARE(gptr, >)
EMU_COMPARE(gptr, >=)
EMU_COMPARE(sptr, ==)
EMU_COMPARE(sptr, !=)
EMU_COMPARE(sptr, <)
EMU_COMPARE_NULL(gptr)
EMU_COMPARE_NULL(sptr)
#undef EMU_COMPARE
#undef EMU_COMPARE_NULL

/* Hands out the block's dynamic shared memory; every thread of the block makes the same calls. */
struct shared_arena {
    size_t at = 0;
    int arrays = 0;
    template <class T> sptr<T> take(int count) {
        return sptr<T>(take_bytes(static_cast<size_t>(count) * sizeof(T)), 0);
    }

  private:
    emu::allocation *take_bytes(size_t bytes);
};

#endif
