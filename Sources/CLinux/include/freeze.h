#pragma once
#include <stdint.h>
#include <sys/types.h>

// FIFREEZE on the file system that `fd` lies on. 0, or errno: EBUSY when it is frozen already, EOPNOTSUPP when its type
// cannot be frozen.
int clinux_freeze(int fd);
// FITHAW. 0, or errno: EINVAL when it is not frozen.
int clinux_thaw(int fd);
// The file system's UUID as its own 1 to 16 bytes (FS_IOC_GETFSUUID, Linux 6.9). Their number, or 0 when it is not
// known.
int clinux_filesystem_uuid(int fd, uint8_t uuid[16]);
// statfs's f_fsid and f_type. 0 or errno.
int clinux_filesystem_id(int fd, uint64_t *fsid, uint64_t *type);

// Starts the canary of a frozen file system: a process of its own, without any descriptor but the writing end of
// *signal_fd's pipe, that tries to remove a name which does not exist in `directory`. The kernel lets such a call wait
// in sb_start_write for as long as the file system is frozen and then answers ENOENT: nothing is ever changed. The
// process therefore ends exactly when the freeze ends, whoever ends it, and *signal_fd becomes readable.
// It is not a thread, because a process whose thread waits there cannot be killed.
// 0, or errno. The caller reaps *pid after the thaw and closes *signal_fd.
int clinux_canary_start(const char *path, int *signal_fd, pid_t *pid);

// A device number's parts, as sysfs and mountinfo write them.
unsigned clinux_major(uint64_t device);
unsigned clinux_minor(uint64_t device);

// BLKFLSBUF: writes out and forgets what the kernel caches of a block device. 0 or errno.
int clinux_forget_cached_blocks(int fd);

// syncfs. 0 or errno.
int clinux_sync_filesystem(int fd);
