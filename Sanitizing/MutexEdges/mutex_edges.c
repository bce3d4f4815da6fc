// Tells the thread sanitizer about contended uses of Swift's Synchronization.Mutex.
//
// On Linux the fast paths of Mutex are inlined into our code and instrumented there. Its slow paths (_lockSlow,
// _unlockSlow, _tryLockSlow) take and hand over the lock inside libswiftSynchronization.so, which is not: to the
// sanitizer a thread that had to wait never acquired anything, and what it reads under the lock looks like a race. Here
// those three functions are put before the library's and add what happened: a release before the unlock, an acquire after the lock.
// No report is suppressed; `run.sh` proves with Contention.swift that the false report is gone and that a true one is not.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#if __has_feature(thread_sanitizer)

void __tsan_acquire(void *address);
void __tsan_release(void *address);

// borrowing func of _MutexHandle, a type without a copy: self is the address of the lock word, in the context register.
#define SELF __attribute__((swift_context)) void *self
#define SWIFT __attribute__((swiftcall))
#define LOCK "$s15Synchronization12_MutexHandleV9_lockSlowyys6UInt32VF"
#define TRY_LOCK "$s15Synchronization12_MutexHandleV12_tryLockSlowSbyF"
#define UNLOCK "$s15Synchronization12_MutexHandleV11_unlockSlowyyF"

SWIFT void stillpoint_lock_slow(uint32_t thread, SELF) __asm__(LOCK);
SWIFT bool stillpoint_try_lock_slow(SELF) __asm__(TRY_LOCK);
SWIFT void stillpoint_unlock_slow(SELF) __asm__(UNLOCK);

typedef SWIFT void (*lock_slow)(uint32_t thread, SELF);
typedef SWIFT bool (*try_lock_slow)(SELF);
typedef SWIFT void (*unlock_slow)(SELF);

static lock_slow real_lock;
static try_lock_slow real_try_lock;
static unlock_slow real_unlock;

static void *next(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    // Another toolchain may have another Mutex: then this file has to be looked at again.
    if (found == NULL) abort();
    return found;
}

__attribute__((constructor)) static void find_real_functions(void) {
    real_lock = (lock_slow)next(LOCK);
    real_try_lock = (try_lock_slow)next(TRY_LOCK);
    real_unlock = (unlock_slow)next(UNLOCK);
}

SWIFT void stillpoint_lock_slow(uint32_t thread, SELF) {
    real_lock(thread, self);
    __tsan_acquire(self);
}

SWIFT bool stillpoint_try_lock_slow(SELF) {
    if (!real_try_lock(self)) return false;
    __tsan_acquire(self);
    return true;
}

SWIFT void stillpoint_unlock_slow(SELF) {
    __tsan_release(self);
    real_unlock(self);
}

#endif
