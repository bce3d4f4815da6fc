/* Drives one LUN as cheaply as a client can: no library, one receive for all answers that have come, one send for all
 * commands that follow them, headers and data gathered where they lie. What it measures is the target; libiscsi needs
 * about as much processor time for a command as a target does, and is its limit.
 *
 * Random commands of 4 or 8 KiB, whose data goes with them in one PDU (ImmediateData); one thread and one connection
 * per session. Every answer is checked: its opcode, tag, status, residual and length; with -V the data of a read is
 * compared with what `client -F` wrote. Options and output are those of client.c.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { HEADER = 48, BLOCK = 512, LONGEST_QUEUE = 512, RECEIVE = 4 << 20, MOST_BYTES = 8192 };

static struct {
    char host[64], target[224];
    int port, lun, depth, sessions, writes, verify;
    uint32_t bytes;
    double warm_seconds, seconds;
    pid_t process;
} options = {.depth = 1, .sessions = 1, .bytes = 4096, .warm_seconds = 0.3, .seconds = 1.5};

static atomic_int phase; /* 0: warming up, 1: counting, 2: over. */

struct session {
    int fd, number, outstanding;
    uint32_t command, status;
    uint64_t size, random, commands, *offsets;
    unsigned char (*headers)[HEADER], *data, *in;
    size_t have;
    struct iovec parts[2 * LONGEST_QUEUE];
    int filled;
    const char *failure;
};

static uint32_t get(const unsigned char *at) { return (uint32_t)at[0] << 24 | at[1] << 16 | at[2] << 8 | at[3]; }
static void put(unsigned char *at, uint32_t value) {
    at[0] = value >> 24, at[1] = value >> 16, at[2] = value >> 8, at[3] = value;
}

static double seconds_of(clockid_t clock) {
    struct timespec time;
    return clock_gettime(clock, &time) ? 0 : time.tv_sec + time.tv_nsec / 1e9;
}

static double target_seconds(void) {
    clockid_t clock;
    return !options.process || clock_getcpuclockid(options.process, &clock) ? 0 : seconds_of(clock);
}

/* Sends everything that `parts` holds. */
static int deliver(struct session *session) {
    struct iovec *part = session->parts;
    int count = session->filled;
    session->filled = 0;
    while (count > 0) {
        struct msghdr message = {.msg_iov = part, .msg_iovlen = count};
        ssize_t done = sendmsg(session->fd, &message, MSG_NOSIGNAL);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return -1;
        while (count > 0 && (size_t)done >= part->iov_len) done -= part->iov_len, part++, count--;
        if (count > 0) part->iov_base = (char *)part->iov_base + done, part->iov_len -= done;
    }
    return 0;
}

static void add(struct session *session, void *bytes, size_t count) {
    session->parts[session->filled++] = (struct iovec){bytes, count};
}

/* Puts the next command with the tag `slot` behind those that are to be sent. */
static void issue(struct session *session, int slot) {
    unsigned char *header = session->headers[slot], *data = session->data + (size_t)slot * options.bytes;
    session->random ^= session->random << 13;
    session->random ^= session->random >> 7;
    session->random ^= session->random << 17;
    uint64_t offset = session->random % (session->size / options.bytes) * options.bytes, lba = offset / BLOCK;
    session->offsets[slot] = offset;
    memset(header, 0, HEADER);
    header[0] = 0x01;
    header[1] = options.writes ? 0xa1 : 0xc1;
    if (options.writes) put(header + 4, options.bytes);
    header[9] = options.lun;
    put(header + 16, slot);
    put(header + 20, options.bytes);
    put(header + 24, session->command++);
    put(header + 28, session->status);
    header[32] = options.writes ? 0x8a : 0x88;
    put(header + 34, lba >> 32);
    put(header + 38, lba);
    put(header + 42, options.bytes / BLOCK);
    add(session, header, HEADER);
    if (options.writes) {
        /* One word of each block is new: the same data is never written twice. */
        for (size_t at = 0; at < options.bytes; at += 4096) memcpy(data + at, &session->random, 8);
        add(session, data, options.bytes);
    }
    session->outstanding++;
}

static const char *check(struct session *session, const unsigned char *pdu, uint32_t count) {
    int is_data = (pdu[0] & 0x3f) == 0x25;
    uint32_t slot = get(pdu + 16);
    if (slot >= (uint32_t)options.depth) return "an unknown tag";
    if (pdu[3]) return "a bad status";
    if (pdu[1] & 6) return "a residual";
    if (is_data == options.writes) return "an answer of the wrong kind";
    /* One PDU for each read: the whole length, at offset 0, with the status. */
    if (is_data && (count != options.bytes || get(pdu + 40) || !(pdu[1] & 1))) return "data in pieces";
    if (!is_data || !options.verify) return NULL;
    for (size_t at = 0; at < options.bytes; at += 8) {
        uint64_t word, wanted = (session->offsets[slot] + at + 1) * 0x9e3779b97f4a7c15u;
        memcpy(&word, pdu + HEADER + at, 8);
        if (word != wanted) return "wrong data";
    }
    return NULL;
}

/* Handles the whole PDUs that have come, and puts a command in the place of each that ended. */
static void handle(struct session *session) {
    size_t used = 0;
    int now = atomic_load_explicit(&phase, memory_order_relaxed);
    while (session->have - used >= HEADER && !session->failure) {
        const unsigned char *pdu = session->in + used;
        uint32_t count = get(pdu + 4) & 0xffffff;
        if (session->have - used < HEADER + ((count + 3) & ~3u)) break;
        used += HEADER + ((count + 3) & ~3u);
        if ((pdu[0] & 0x3f) == 0x20) continue; /* A NOP-In that wants to know nothing within these seconds. */
        session->failure = (pdu[0] & 0x3f) == 0x25 || (pdu[0] & 0x3f) == 0x21 ? check(session, pdu, count)
                                                                              : "an unexpected PDU";
        session->status = get(pdu + 24) + 1;
        session->outstanding--;
        if (now == 1) session->commands++;
        if (now != 2 && !session->failure) issue(session, get(pdu + 16));
    }
    memmove(session->in, session->in + used, session->have -= used);
}

static void *drive(void *argument) {
    struct session *session = argument;
    for (int slot = 0; slot < options.depth; slot++) issue(session, slot);
    while (session->outstanding > 0 && !session->failure) {
        if (session->filled && deliver(session)) session->failure = "the connection broke";
        ssize_t count = recv(session->fd, session->in + session->have, RECEIVE - session->have, 0);
        if (count <= 0) session->failure = "no answer for 5 s, or the connection broke";
        else session->have += count, handle(session);
    }
    return NULL;
}

/* Sends one PDU and waits for its answer; for what comes before the measurement. Returns the length of its data. */
static ssize_t exchange(struct session *session, unsigned char *header, void *data, uint32_t count) {
    static char zeros[4];
    put(header + 4, count);
    add(session, header, HEADER);
    if (count) add(session, data, count), add(session, zeros, -count & 3);
    if (deliver(session)) return -1;
    for (session->have = 0;;) {
        ssize_t got = recv(session->fd, session->in + session->have, RECEIVE - session->have, 0);
        if (got <= 0) return -1;
        session->have += got;
        if (session->have < HEADER) continue;
        uint32_t length = get(session->in + 4) & 0xffffff;
        if (session->have < HEADER + ((length + 3) & ~3u)) continue;
        session->status = get(session->in + 24) + 1;
        session->have = 0;
        return length;
    }
}

static ssize_t small_command(struct session *session, unsigned char opcode, unsigned char action, uint32_t length) {
    unsigned char header[HEADER] = {0x01, length ? 0xc1 : 0x81};
    header[9] = options.lun;
    put(header + 20, length);
    put(header + 24, session->command++);
    put(header + 28, session->status);
    header[32] = opcode;
    header[33] = action;
    put(header + 42, length);
    return exchange(session, header, NULL, 0);
}

static const char *connect_session(struct session *session, int number) {
    session->number = number;
    session->random = 0x853c49e6748fea9bu + number * 0x9e3779b97f4a7c15u;
    session->in = malloc(RECEIVE);
    session->offsets = calloc(options.depth, sizeof *session->offsets);
    session->headers = calloc(options.depth, HEADER);
    if (posix_memalign((void **)&session->data, 4096, (size_t)options.depth * options.bytes)) abort();
    for (size_t at = 0; at < (size_t)options.depth * options.bytes; at += 8) {
        uint64_t word = (((uint64_t)number << 32) + at + 1) * 0x9e3779b97f4a7c15u;
        memcpy(session->data + at, &word, 8);
    }
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(options.port)};
    struct timeval patience = {.tv_sec = 5};
    int on = 1;
    session->fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(session->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(session->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (inet_pton(AF_INET, options.host, &address.sin_addr) != 1) return "the host must be an IPv4 address";
    if (connect(session->fd, (void *)&address, sizeof address)) return "cannot connect";
    char keys[1024];
    int length = snprintf(
        keys, sizeof keys,
        "InitiatorName=iqn.2026-11.bench:lean%d%cTargetName=%s%cSessionType=Normal%cHeaderDigest=None%cDataDigest=None%c"
        "InitialR2T=No%cImmediateData=Yes%cMaxRecvDataSegmentLength=262144%cFirstBurstLength=262144%c"
        "MaxBurstLength=262144%cMaxOutstandingR2T=1%cErrorRecoveryLevel=0%cMaxConnections=1%c",
        number, 0, options.target, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    unsigned char header[HEADER] = {0x43, 0x87, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0, number + 1};
    session->command = 1;
    put(header + 24, session->command);
    if (exchange(session, header, keys, length) < 0 || (session->in[0] & 0x3f) != 0x23) return "no answer to the login";
    if (session->in[36] || (session->in[1] & 0x83) != 0x83) return "the login was refused";
    /* Unit attentions first. */
    for (int attempt = 0;; attempt++) {
        if (small_command(session, 0, 0, 0) < 0) return "no answer to TEST UNIT READY";
        if (!session->in[3]) break;
        if (attempt == 16) return "the unit does not get ready";
    }
    if (small_command(session, 0x9e, 0x10, 32) < 12) return "no capacity";
    const unsigned char *capacity = session->in + HEADER;
    session->size = (((uint64_t)get(capacity) << 32 | get(capacity + 4)) + 1) * BLOCK;
    return get(capacity + 8) == BLOCK ? NULL : "blocks are not of 512 bytes";
}

static int usage(void) {
    fprintf(stderr, "usage: lean [-w] [-V] [-b BYTES] [-d DEPTH] [-s SESSIONS] [-t SECONDS] [-p PID] "
                    "iscsi://ADDRESS:PORT/TARGET/LUN\n");
    return 2;
}

int main(int argc, char **argv) {
    int option;
    while ((option = getopt(argc, argv, "wVb:d:s:t:p:")) != -1) {
        switch (option) {
        case 'w': options.writes = 1; break;
        case 'V': options.verify = 1; break;
        case 'b': options.bytes = strtoul(optarg, NULL, 10); break;
        case 'd': options.depth = atoi(optarg); break;
        case 's': options.sessions = atoi(optarg); break;
        case 't': options.seconds = atof(optarg); break;
        case 'p': options.process = atoi(optarg); break;
        default: return usage();
        }
    }
    if (optind + 1 != argc || options.depth < 1 || options.depth > LONGEST_QUEUE || options.sessions < 1 ||
        options.sessions > 64 || (options.bytes != 4096 && options.bytes != MOST_BYTES) ||
        sscanf(argv[optind], "iscsi://%63[0-9.]:%d/%223[^/]/%d", options.host, &options.port, options.target,
               &options.lun) != 4)
        return usage();
    struct session *sessions = calloc(options.sessions, sizeof *sessions);
    pthread_t *threads = calloc(options.sessions, sizeof *threads);
    for (int i = 0; i < options.sessions; i++) {
        const char *failure = connect_session(&sessions[i], i);
        if (failure) return fprintf(stderr, "%s\n", failure), 1;
    }
    for (int i = 0; i < options.sessions; i++)
        if (pthread_create(&threads[i], NULL, drive, &sessions[i])) abort();
    usleep(options.warm_seconds * 1e6);
    double began = seconds_of(CLOCK_MONOTONIC), used = target_seconds(), mine = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
    atomic_store(&phase, 1);
    usleep(options.seconds * 1e6);
    atomic_store(&phase, 2);
    double elapsed = seconds_of(CLOCK_MONOTONIC) - began, cpu = target_seconds() - used;
    mine = seconds_of(CLOCK_PROCESS_CPUTIME_ID) - mine;
    uint64_t commands = 0;
    int failed = 0;
    for (int i = 0; i < options.sessions; i++) {
        pthread_join(threads[i], NULL);
        commands += sessions[i].commands;
        if (sessions[i].failure) failed = 1, fprintf(stderr, "session %d: %s\n", i, sessions[i].failure);
        close(sessions[i].fd);
    }
    double rate = commands / elapsed;
    printf("{\"iops\": %.0f, \"megabytes\": %.1f, \"cpu_microseconds\": %.3f, \"client_microseconds\": %.3f}\n", rate,
           rate * options.bytes / 1e6, commands ? cpu / commands * 1e6 : 0, commands ? mine / commands * 1e6 : 0);
    return failed;
}
