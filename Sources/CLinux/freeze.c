#define _GNU_SOURCE
#include "include/freeze.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

int clinux_freeze(int fd)
{
    return ioctl(fd, FIFREEZE, 0) < 0 ? errno : 0;
}

int clinux_thaw(int fd)
{
    return ioctl(fd, FITHAW, 0) < 0 ? errno : 0;
}

// As in linux/fs.h since 6.9; headers of Debian 12 are older.
struct filesystem_uuid {
    uint8_t length;
    uint8_t bytes[16];
};
#define GET_FILESYSTEM_UUID _IOR(0x15, 0, struct filesystem_uuid)

int clinux_filesystem_uuid(int fd, uint8_t uuid[16])
{
    struct filesystem_uuid answer;
    memset(&answer, 0, sizeof answer);
    if (ioctl(fd, GET_FILESYSTEM_UUID, &answer) < 0 || answer.length > 16) return 0;
    memcpy(uuid, answer.bytes, answer.length);
    return answer.length;
}

int clinux_filesystem_id(int fd, uint64_t *fsid, uint64_t *type)
{
    struct statfs info;
    if (fstatfs(fd, &info) < 0) return errno;
    uint32_t parts[2];
    memcpy(parts, &info.f_fsid, sizeof parts);
    *fsid = (uint64_t)parts[0] << 32 | parts[1];
    *type = (uint64_t)info.f_type;
    return 0;
}

int clinux_canary_start(const char *path, int *signal_fd, pid_t *pid)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) < 0) return errno;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pid_t child = fork();
    if (child == 0) {
        // Async-signal-safe calls only. Nothing of the parent's stays open: not its output, whose end tells the agent
        // of its death, and not its journal, whose lock tells a recovery that it is alive.
        int channel = fds[1] < 3 ? fcntl(fds[1], F_DUPFD_CLOEXEC, 3) : fds[1];
        for (int fd = 0; fd < 3; fd++) close(fd);
        if (channel > 3) syscall(SYS_close_range, 3U, (unsigned)channel - 1, 0);
        syscall(SYS_close_range, (unsigned)channel + 1, ~0U, 0);
        prctl(PR_SET_NAME, "freeze-canary");
        int failure = unlink(path) < 0 ? errno : 0;
        ssize_t written = write(channel, &failure, 1);
        _exit(written == 1 ? 0 : 1);
    }
    int failure = child < 0 ? errno : 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    close(fds[1]);
    if (failure) {
        close(fds[0]);
        return failure;
    }
    *signal_fd = fds[0];
    *pid = child;
    return 0;
}

unsigned clinux_major(uint64_t device)
{
    return major(device);
}

unsigned clinux_minor(uint64_t device)
{
    return minor(device);
}

int clinux_forget_cached_blocks(int fd)
{
    return ioctl(fd, BLKFLSBUF, 0) < 0 ? errno : 0;
}

int clinux_sync_filesystem(int fd)
{
    return syncfs(fd) < 0 ? errno : 0;
}
