/* Drives one LUN through libiscsi and prints one line of JSON: how many commands a second were answered, and how much
 * processor time the target's process used for each.
 *
 * One thread per session, each with its own libiscsi context and a fixed number of commands under way. The first part
 * of a run is not counted. Every answer is checked for its status, and what is read for its length; with -V the data
 * of a read is compared with what a -F run wrote.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <iscsi/iscsi.h>
#include <iscsi/scsi-lowlevel.h>

enum { LONGEST_QUEUE = 1024, BLOCK = 512 };

static struct {
    const char *url;
    int depth, sessions, writes, sequential, digest, fill, verify, cache;
    size_t bytes;
    double warm_seconds, seconds;
    pid_t target;
} options = {.depth = 1, .sessions = 1, .bytes = 4096, .warm_seconds = 0.3, .seconds = 1.5};

/* 0: warming up, 1: counting, 2: over. */
static atomic_int phase;

struct session {
    struct iscsi_context *iscsi;
    int lun, number;
    uint64_t size, next, random, commands;
    int outstanding;
    char failure[256];
};

struct slot {
    struct session *session;
    unsigned char *buffer;
    struct scsi_iovec part;
    uint64_t offset;
};

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

/* Processor time of the target's whole process, in seconds: the sum of /proc/PID/task/N/schedstat, as the clock of the
 * process gives it. */
static double target_seconds(void) {
    clockid_t clock;
    struct timespec time;
    if (!options.target || clock_getcpuclockid(options.target, &clock) || clock_gettime(clock, &time)) return 0;
    return time.tv_sec + time.tv_nsec / 1e9;
}

/* Every 4 KiB differ, and none is zero: a store must not find a short cut. */
static void pattern(unsigned char *buffer, size_t bytes, uint64_t offset) {
    for (size_t at = 0; at < bytes; at += 8) {
        uint64_t word = (offset + at + 1) * 0x9e3779b97f4a7c15u;
        memcpy(buffer + at, &word, 8);
    }
}

static void issue(struct slot *slot);

static void answered(struct iscsi_context *iscsi, int status, void *data, void *private_data) {
    struct slot *slot = private_data;
    struct session *session = slot->session;
    struct scsi_task *task = data;
    session->outstanding--;
    if (status != SCSI_STATUS_GOOD)
        snprintf(session->failure, sizeof session->failure, "status %d: %s", status, iscsi_get_error(iscsi));
    else if (task && task->residual_status != SCSI_RESIDUAL_NO_RESIDUAL)
        snprintf(session->failure, sizeof session->failure, "residual of %zu bytes", task->residual);
    if (options.verify && !options.writes && !session->failure[0]) {
        for (size_t at = 0; at < options.bytes; at += 8) {
            uint64_t word;
            memcpy(&word, slot->buffer + at, 8);
            if (word == (slot->offset + at + 1) * 0x9e3779b97f4a7c15u) continue;
            snprintf(session->failure, sizeof session->failure, "wrong data at %llu",
                     (unsigned long long)(slot->offset + at));
            break;
        }
    }
    if (task) scsi_free_scsi_task(task);
    if (atomic_load_explicit(&phase, memory_order_relaxed) == 1) session->commands++;
    issue(slot);
}

static uint64_t next_offset(struct session *session) {
    uint64_t count = session->size / options.bytes;
    if (options.sequential || options.fill) {
        uint64_t at = session->next++;
        if (options.fill && at * options.sessions + session->number >= count) return UINT64_MAX;
        if (options.fill) return (at * options.sessions + session->number) * options.bytes;
        return (at + count / options.sessions * session->number) % count * options.bytes;
    }
    session->random ^= session->random << 13;
    session->random ^= session->random >> 7;
    session->random ^= session->random << 17;
    return session->random % count * options.bytes;
}

static void issue(struct slot *slot) {
    struct session *session = slot->session;
    if (session->failure[0] || (!options.fill && atomic_load_explicit(&phase, memory_order_relaxed) == 2)) return;
    uint64_t offset = next_offset(session);
    if (offset == UINT64_MAX) return;
    slot->offset = offset;
    struct scsi_task *task;
    if (options.writes) {
        if (options.fill) {
            pattern(slot->buffer, options.bytes, offset);
        } else {
            /* One word of each block is new: the same data is never written twice. */
            for (size_t at = 0; at < options.bytes; at += 4096) memcpy(slot->buffer + at, &session->random, 8);
            if (options.sequential) session->random++;
        }
        task = iscsi_write16_task(session->iscsi, session->lun, offset / BLOCK, slot->buffer, options.bytes, BLOCK, 0,
                                  0, 0, 0, 0, answered, slot);
    } else {
        slot->part = (struct scsi_iovec){.iov_base = slot->buffer, .iov_len = options.bytes};
        task = iscsi_read16_iov_task(session->iscsi, session->lun, offset / BLOCK, options.bytes, BLOCK, 0, 0, 0, 0, 0,
                                     answered, slot, &slot->part, 1);
    }
    if (task) session->outstanding++;
    else snprintf(session->failure, sizeof session->failure, "%s", iscsi_get_error(session->iscsi));
}

static void *drive(void *argument) {
    struct session *session = argument;
    struct slot *slots = calloc(options.depth, sizeof *slots);
    for (int i = 0; i < options.depth; i++) {
        slots[i].session = session;
        if (posix_memalign((void **)&slots[i].buffer, 4096, options.bytes)) abort();
        pattern(slots[i].buffer, options.bytes, (uint64_t)(session->number * LONGEST_QUEUE + i) << 32);
        issue(&slots[i]);
    }
    while (session->outstanding > 0 && !session->failure[0]) {
        struct pollfd descriptor = {.fd = iscsi_get_fd(session->iscsi), .events = iscsi_which_events(session->iscsi)};
        int ready = poll(&descriptor, 1, 5000);
        if (ready < 0 && errno == EINTR) continue;
        if (ready <= 0) snprintf(session->failure, sizeof session->failure, "no answer for 5 s");
        else if (iscsi_service(session->iscsi, descriptor.revents) < 0)
            snprintf(session->failure, sizeof session->failure, "%s", iscsi_get_error(session->iscsi));
    }
    return NULL;
}

static int connect_session(struct session *session, int number) {
    char name[64];
    snprintf(name, sizeof name, "iqn.2026-11.bench:client%d", number);
    session->iscsi = iscsi_create_context(name);
    session->number = number;
    session->random = 0x853c49e6748fea9bu + number * 0x9e3779b97f4a7c15u;
    struct iscsi_url *url = iscsi_parse_full_url(session->iscsi, options.url);
    if (!url) return fprintf(stderr, "%s\n", iscsi_get_error(session->iscsi)), -1;
    session->lun = url->lun;
    iscsi_set_targetname(session->iscsi, url->target);
    iscsi_set_session_type(session->iscsi, ISCSI_SESSION_NORMAL);
    iscsi_set_header_digest(session->iscsi,
                            options.digest ? ISCSI_HEADER_DIGEST_CRC32C : ISCSI_HEADER_DIGEST_NONE);
    iscsi_set_noautoreconnect(session->iscsi, 1);
    if (iscsi_full_connect_sync(session->iscsi, url->portal, url->lun))
        return fprintf(stderr, "%s\n", iscsi_get_error(session->iscsi)), -1;
    iscsi_destroy_url(url);
    struct scsi_task *task = iscsi_readcapacity16_sync(session->iscsi, session->lun);
    struct scsi_readcapacity16 *capacity = task ? scsi_datain_unmarshall(task) : NULL;
    if (!capacity || task->status != SCSI_STATUS_GOOD) return fprintf(stderr, "no capacity\n"), -1;
    session->size = (capacity->returned_lba + 1) * (uint64_t)capacity->block_length;
    if (capacity->block_length != BLOCK) return fprintf(stderr, "blocks of %u bytes\n", capacity->block_length), -1;
    scsi_free_scsi_task(task);
    return 0;
}

/* The WCE bit of the caching page: whether a write is answered before it is on the medium. */
static int print_write_cache(struct session *session) {
    struct scsi_task *task = iscsi_modesense6_sync(session->iscsi, session->lun, 0, SCSI_MODESENSE_PC_CURRENT,
                                                   SCSI_MODEPAGE_CACHING, 0, 255);
    struct scsi_mode_sense *modes = task && task->status == SCSI_STATUS_GOOD ? scsi_datain_unmarshall(task) : NULL;
    struct scsi_mode_page *page = modes ? scsi_modesense_get_page(modes, SCSI_MODEPAGE_CACHING, 0) : NULL;
    if (!page) return fprintf(stderr, "no caching page\n"), 1;
    printf("{\"write_cache\": %d}\n", page->caching.wce ? 1 : 0);
    scsi_free_scsi_task(task);
    return 0;
}

static int usage(void) {
    fprintf(stderr, "usage: client [-w] [-S] [-F] [-V] [-g] [-c] [-b BYTES] [-d DEPTH] [-s SESSIONS] [-t SECONDS] [-p PID] "
                    "iscsi://HOST:PORT/TARGET/LUN\n"
                    "  -w writes, -S sequential, -g header digest, -p the target's process\n"
                    "  -c only tells whether the LUN has a volatile write cache\n"
                    "  -F fills the whole LUN with a pattern once, -V checks it while reading\n");
    return 2;
}

int main(int argc, char **argv) {
    int option;
    while ((option = getopt(argc, argv, "wSFVgcb:d:s:t:p:")) != -1) {
        switch (option) {
        case 'w': options.writes = 1; break;
        case 'S': options.sequential = 1; break;
        case 'F': options.fill = options.writes = 1; break;
        case 'V': options.verify = 1; break;
        case 'g': options.digest = 1; break;
        case 'c': options.cache = 1; break;
        case 'b': options.bytes = strtoul(optarg, NULL, 10); break;
        case 'd': options.depth = atoi(optarg); break;
        case 's': options.sessions = atoi(optarg); break;
        case 't': options.seconds = atof(optarg); break;
        case 'p': options.target = atoi(optarg); break;
        default: return usage();
        }
    }
    if (optind + 1 != argc || options.depth < 1 || options.depth > LONGEST_QUEUE || options.sessions < 1 ||
        options.sessions > 64 || options.bytes < BLOCK || options.bytes % BLOCK)
        return usage();
    options.url = argv[optind];
    struct session *sessions = calloc(options.sessions, sizeof *sessions);
    pthread_t *threads = calloc(options.sessions, sizeof *threads);
    for (int i = 0; i < options.sessions; i++)
        if (connect_session(&sessions[i], i)) return 1;
    if (options.cache) return print_write_cache(&sessions[0]);
    for (int i = 0; i < options.sessions; i++)
        if (pthread_create(&threads[i], NULL, drive, &sessions[i])) abort();
    double began = now(), used = target_seconds();
    if (!options.fill) {
        usleep(options.warm_seconds * 1e6);
        began = now(), used = target_seconds();
        atomic_store(&phase, 1);
        usleep(options.seconds * 1e6);
        atomic_store(&phase, 2);
    } else {
        atomic_store(&phase, 1);
    }
    double ended = now();
    double cpu = target_seconds() - used;
    uint64_t commands = 0;
    int failed = 0;
    for (int i = 0; i < options.sessions; i++) {
        pthread_join(threads[i], NULL);
        commands += sessions[i].commands;
        if (sessions[i].failure[0]) failed = 1, fprintf(stderr, "session %d: %s\n", i, sessions[i].failure);
        if (!sessions[i].failure[0]) iscsi_logout_sync(sessions[i].iscsi);
        iscsi_destroy_context(sessions[i].iscsi);
    }
    if (options.fill) ended = now(), cpu = target_seconds() - used;
    double rate = commands / (ended - began);
    printf("{\"iops\": %.0f, \"megabytes\": %.1f, \"cpu_microseconds\": %.3f}\n", rate, rate * options.bytes / 1e6,
           commands ? cpu / commands * 1e6 : 0);
    return failed;
}
