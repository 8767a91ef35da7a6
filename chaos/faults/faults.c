/* Faults of disk and clock for one process, preloaded into it (LD_PRELOAD). See ../src/faults.rs, which compiles this,
 * tells it what to do and reads what it wrote.
 *
 * CHAOS_FAULTS names a directory with two files: `cell`, which is mapped (generation, counters), and `rules`, which
 * is read again whenever the generation moved. System calls are made directly, so that nothing here meets itself. */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum op { OPEN = 1, WRITE = 2, TRUNCATE = 4, SYNC = 8, RANGE = 16, RENAME = 32, UNLINK = 64, MKDIR = 128 };
enum action { FAIL = 1, SHORT = 2, DELAY = 3, HANG = 4, LIE = 5, KILL = 6 };

#define RULES 32
#define PATH_BYTES 4096
#define RULES_BYTES 65536

struct rule {
    unsigned ops;
    uint64_t skip, times;
    int action;
    long argument, error;
    char path[512];
};

/* The file `cell`: written by both sides, each its own words. */
struct cell {
    volatile uint64_t generation;
    uint64_t unused[7];
    uint64_t seen[RULES];
    uint64_t struck[RULES];
};

static struct cell *cell;
static char directory[PATH_BYTES];
static pthread_mutex_t rules_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t trace_lock = PTHREAD_MUTEX_INITIALIZER;
static volatile uint64_t loaded = UINT64_MAX;
static struct rule rules[RULES];
static int rule_count;
static volatile int active;
static char traced[512];
static volatile int tracing;
static int trace_fd = -1;
/* Nanoseconds that are added to CLOCK_REALTIME, CLOCK_MONOTONIC and CLOCK_BOOTTIME. */
static volatile int64_t realtime_ns, monotonic_ns, boottime_ns;

static void load_line(char *line) {
    struct rule rule;
    long long offset;
    int used = 0;
    if (sscanf(line, "trace %511[^\n]", traced) == 1) {
        tracing = 1;
    } else if (sscanf(line, "realtime %lld", &offset) == 1) {
        realtime_ns = offset;
    } else if (sscanf(line, "monotonic %lld", &offset) == 1) {
        monotonic_ns = offset;
    } else if (sscanf(line, "boottime %lld", &offset) == 1) {
        boottime_ns = offset;
    } else if (sscanf(line, "rule %u %lu %lu %d %ld %ld %n", &rule.ops, &rule.skip, &rule.times, &rule.action,
                      &rule.argument, &rule.error, &used) == 6 && rule_count < RULES) {
        snprintf(rule.path, sizeof rule.path, "%s", line + used);
        rules[rule_count++] = rule;
    }
}

static void load(uint64_t generation) {
    static char text[RULES_BYTES];
    char path[PATH_BYTES + 16], *save = NULL;
    pthread_mutex_lock(&rules_lock);
    if (loaded != generation) {
        snprintf(path, sizeof path, "%s/rules", directory);
        int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
        long length = fd < 0 ? 0 : syscall(SYS_read, fd, text, sizeof text - 1);
        if (fd >= 0) syscall(SYS_close, fd);
        text[length > 0 ? length : 0] = 0;
        rule_count = 0;
        tracing = 0;
        realtime_ns = monotonic_ns = boottime_ns = 0;
        for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) load_line(line);
        if (tracing && trace_fd < 0) {
            snprintf(path, sizeof path, "%s/trace", directory);
            trace_fd = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        }
        active = rule_count > 0;
        loaded = generation;
    }
    pthread_mutex_unlock(&rules_lock);
}

/* Whether anybody wants to know of file operations. */
static int watched(void) {
    if (!cell) return 0;
    uint64_t generation = cell->generation;
    if (generation != loaded) load(generation);
    return active || tracing;
}

/* The rule that strikes now, if one does, and the generation it is of. All that match count, the first one that is due
 * strikes. */
static int strike(enum op op, const char *path, struct rule *found, uint64_t *generation) {
    int struck = 0;
    pthread_mutex_lock(&rules_lock);
    for (int at = 0; at < rule_count; at++) {
        struct rule *rule = &rules[at];
        if (!(rule->ops & op) || !strstr(path, rule->path)) continue;
        uint64_t seen = __atomic_fetch_add(&cell->seen[at], 1, __ATOMIC_SEQ_CST);
        if (struck || seen < rule->skip || seen - rule->skip >= rule->times) continue;
        __atomic_fetch_add(&cell->struck[at], 1, __ATOMIC_SEQ_CST);
        *found = *rule;
        *generation = loaded;
        struck = 1;
    }
    pthread_mutex_unlock(&rules_lock);
    return struck;
}

static void sleep_ms(long ms) {
    struct timespec left = {ms / 1000, ms % 1000 * 1000000};
    while (syscall(SYS_nanosleep, &left, &left) < 0 && errno == EINTR) {}
}

/* What is to become of an operation: 0 it is done, 1 it is not and `result` is the answer, 2 it is cut to `length`. */
static int judge(enum op op, const char *path, long *result, size_t *length) {
    struct rule rule = {0};
    uint64_t generation = 0;
    if (!active || !strike(op, path, &rule, &generation)) return 0;
    switch (rule.action) {
    case FAIL:
        sleep_ms(rule.argument);
        errno = (int)rule.error;
        *result = -1;
        return 1;
    case SHORT:
        if ((size_t)rule.argument < *length) *length = (size_t)rule.argument;
        return 2;
    case DELAY:
        sleep_ms(rule.argument);
        return 0;
    case HANG:
        /* Until the rules change. The generation is that of the rule: another thread may have read newer rules by now,
         * after which nothing would change any more. */
        while (cell->generation == generation) sleep_ms(2);
        return 0;
    case LIE:
        *result = op == WRITE ? (long)*length : 0;
        return 1;
    default:
        syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
        return 0;
    }
}

/* One record: op, length of both paths, offset, length of the data; then paths and data. */
static void record(enum op op, const char *path, const char *second, uint64_t offset, const void *data, size_t length) {
    struct {
        uint32_t op;
        uint16_t path, second;
        uint64_t offset, length;
    } head = {op, (uint16_t)strlen(path), (uint16_t)strlen(second), offset, data ? length : 0};
    struct iovec parts[4] = {{&head, sizeof head},
                             {(void *)path, head.path},
                             {(void *)second, head.second},
                             {(void *)data, head.length}};
    size_t total = sizeof head + head.path + head.second + head.length;
    if (syscall(SYS_writev, trace_fd, parts, 4) != (long)total) {
        static const char text[] = "faults: the trace cannot be written\n";
        syscall(SYS_write, 2, text, sizeof text - 1);
        abort();
    }
}

/* Locks the trace if the path belongs to it: an operation and its record are one step. */
static int begin_record(const char *path) {
    if (!tracing || !strstr(path, traced)) return 0;
    pthread_mutex_lock(&trace_lock);
    return 1;
}

static void end_record(int begun) {
    int error = errno;
    if (begun) pthread_mutex_unlock(&trace_lock);
    errno = error;
}

static int path_of(int fd, char *path) {
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    long length = syscall(SYS_readlinkat, AT_FDCWD, name, path, PATH_BYTES - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return path[0] == '/';
}

static ssize_t write_at(int fd, const void *data, size_t length, off64_t offset, int at) {
    char path[PATH_BYTES];
    if (!watched() || !path_of(fd, path))
        return at ? syscall(SYS_pwrite64, fd, data, length, offset) : syscall(SYS_write, fd, data, length);
    long result;
    size_t cut = length;
    if (judge(WRITE, path, &result, &cut) == 1) return result;
    int begun = begin_record(path);
    if (begun && !at) {
        int append = (int)syscall(SYS_fcntl, fd, F_GETFL) & O_APPEND;
        offset = syscall(SYS_lseek, fd, 0, append ? SEEK_END : SEEK_CUR);
    }
    result = at ? syscall(SYS_pwrite64, fd, data, cut, offset) : syscall(SYS_write, fd, data, cut);
    if (begun && result > 0) record(WRITE, path, "", (uint64_t)offset, data, (size_t)result);
    end_record(begun);
    return result;
}

ssize_t write(int fd, const void *data, size_t length) { return write_at(fd, data, length, 0, 0); }
ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) { return write_at(fd, data, length, offset, 1); }
ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset) {
    return write_at(fd, data, length, offset, 1);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    char path[PATH_BYTES];
    if (!watched() || !path_of(fd, path)) return syscall(SYS_writev, fd, parts, count);
    /* A short count is always allowed: the first part that is not empty goes alone. */
    for (int at = 0; at < count; at++)
        if (parts[at].iov_len) return write_at(fd, parts[at].iov_base, parts[at].iov_len, 0, 0);
    return 0;
}

static int sync_call(enum op op, long call, int fd, off64_t offset, off64_t length, unsigned flags) {
    char path[PATH_BYTES];
    if (!watched() || !path_of(fd, path)) return (int)syscall(call, fd, offset, length, flags);
    long result;
    size_t none = 0;
    if (judge(op, path, &result, &none) == 1) return (int)result;
    int begun = begin_record(path);
    result = syscall(call, fd, offset, length, flags);
    if (begun && result == 0) record(op, path, "", 0, NULL, 0);
    end_record(begun);
    return (int)result;
}

int fsync(int fd) { return sync_call(SYNC, SYS_fsync, fd, 0, 0, 0); }
int fdatasync(int fd) { return sync_call(SYNC, SYS_fdatasync, fd, 0, 0, 0); }
int sync_file_range(int fd, off64_t offset, off64_t length, unsigned flags) {
    return sync_call(RANGE, SYS_sync_file_range, fd, offset, length, flags);
}

static int truncate_call(int fd, off64_t length) {
    char path[PATH_BYTES];
    if (!watched() || !path_of(fd, path)) return (int)syscall(SYS_ftruncate, fd, length);
    long result;
    size_t none = 0;
    if (judge(TRUNCATE, path, &result, &none) == 1) return (int)result;
    int begun = begin_record(path);
    result = syscall(SYS_ftruncate, fd, length);
    if (begun && result == 0) record(TRUNCATE, path, "", (uint64_t)length, NULL, 0);
    end_record(begun);
    return (int)result;
}

int ftruncate(int fd, off_t length) { return truncate_call(fd, length); }
int ftruncate64(int fd, off64_t length) { return truncate_call(fd, length); }

/* Not traced: nothing that is traced reserves space. */
static int allocate_call(int fd, int mode, off64_t offset, off64_t length) {
    char path[PATH_BYTES];
    long result;
    size_t none = 0;
    if (watched() && path_of(fd, path) && judge(TRUNCATE, path, &result, &none) == 1) return (int)result;
    return (int)syscall(SYS_fallocate, fd, mode, offset, length);
}

int fallocate(int fd, int mode, off_t offset, off_t length) { return allocate_call(fd, mode, offset, length); }
int fallocate64(int fd, int mode, off64_t offset, off64_t length) { return allocate_call(fd, mode, offset, length); }

static int open_call(int at, const char *name, int flags, mode_t mode) {
    int changes = flags & (O_CREAT | O_TRUNC);
    if (!changes || !watched()) return (int)syscall(SYS_openat, at, name, flags, mode);
    long result;
    size_t none = 0;
    if (judge(OPEN, name, &result, &none) == 1) return (int)result;
    int begun = begin_record(name);
    result = syscall(SYS_openat, at, name, flags, mode);
    if (begun && result >= 0) record(OPEN, name, "", (flags & O_TRUNC) ? 1 : 0, NULL, 0);
    end_record(begun);
    return (int)result;
}

#define OPEN_MODE(flags)                                                                                              \
    mode_t mode = 0;                                                                                                  \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                                                                            \
        va_list more;                                                                                                 \
        va_start(more, flags);                                                                                        \
        mode = va_arg(more, mode_t);                                                                                  \
        va_end(more);                                                                                                 \
    }

int open(const char *name, int flags, ...) { OPEN_MODE(flags) return open_call(AT_FDCWD, name, flags, mode); }
int open64(const char *name, int flags, ...) { OPEN_MODE(flags) return open_call(AT_FDCWD, name, flags, mode); }
int openat(int at, const char *name, int flags, ...) { OPEN_MODE(flags) return open_call(at, name, flags, mode); }
int openat64(int at, const char *name, int flags, ...) { OPEN_MODE(flags) return open_call(at, name, flags, mode); }

static int name_call(enum op op, const char *name, const char *second, mode_t mode) {
    long result;
    size_t none = 0;
    int seen = watched();
    if (seen && judge(op, name, &result, &none) == 1) return (int)result;
    int begun = seen && begin_record(name);
    switch (op) {
    case RENAME:
        result = syscall(SYS_renameat2, AT_FDCWD, name, AT_FDCWD, second, 0);
        break;
    case UNLINK:
        result = syscall(SYS_unlinkat, AT_FDCWD, name, 0);
        break;
    default:
        result = syscall(SYS_mkdirat, AT_FDCWD, name, mode);
    }
    if (begun && result == 0) record(op, name, second, 0, NULL, 0);
    end_record(begun);
    return (int)result;
}

int rename(const char *from, const char *to) { return name_call(RENAME, from, to, 0); }
int unlink(const char *name) { return name_call(UNLINK, name, "", 0); }
int mkdir(const char *name, mode_t mode) { return name_call(MKDIR, name, "", mode); }

/* Clocks. Programs read them through the vDSO, some without the C library, so that is where they are caught. */

static int stepped_clock(clockid_t clock, struct timespec *time) {
    long result = syscall(SYS_clock_gettime, clock, time);
    if (result < 0 || !cell) return (int)result;
    uint64_t generation = cell->generation;
    if (generation != loaded) load(generation);
    int64_t offset = clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE     ? realtime_ns
                     : clock == CLOCK_BOOTTIME                                     ? boottime_ns
                     : clock == CLOCK_MONOTONIC || clock == CLOCK_MONOTONIC_COARSE ? monotonic_ns
                                                                                   : 0;
    int64_t ns = time->tv_nsec + offset % 1000000000;
    time->tv_sec += offset / 1000000000;
    if (ns < 0) ns += 1000000000, time->tv_sec -= 1;
    if (ns >= 1000000000) ns -= 1000000000, time->tv_sec += 1;
    time->tv_nsec = ns;
    return 0;
}

/* Makes the vDSO's own function jump to ours. Done before a second thread is there. */
static void divert(uintptr_t from, uintptr_t to) {
#if defined(__x86_64__)
    unsigned char code[12] = {0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xe0}; /* mov rax, to; jmp rax */
    memcpy(code + 2, &to, 8);
#elif defined(__aarch64__)
    unsigned char code[16] = {0x50, 0, 0, 0x58, 0, 2, 0x1f, 0xd6}; /* ldr x16, to; br x16 */
    memcpy(code + 8, &to, 8);
#endif
    int fd = syscall(SYS_openat, AT_FDCWD, "/proc/self/mem", O_RDWR | O_CLOEXEC, 0);
    long written = fd < 0 ? -1 : syscall(SYS_pwrite64, fd, code, sizeof code, from);
    if (fd >= 0) syscall(SYS_close, fd);
    if (written != (long)sizeof code) {
        static const char text[] = "faults: the clocks cannot be stepped here\n";
        syscall(SYS_write, 2, text, sizeof text - 1);
        abort();
    }
}

static void divert_clocks(void) {
    uintptr_t base = getauxval(AT_SYSINFO_EHDR);
    if (!base) return;
    const ElfW(Ehdr) *file = (const void *)base;
    const ElfW(Phdr) *part = (const void *)(base + file->e_phoff);
    const ElfW(Dyn) *dynamic = NULL;
    for (int at = 0; at < file->e_phnum; at++)
        if (part[at].p_type == PT_DYNAMIC) dynamic = (const void *)(base + part[at].p_offset);
    const ElfW(Sym) *symbols = NULL;
    const char *names = NULL;
    for (; dynamic && dynamic->d_tag != DT_NULL; dynamic++) {
        uintptr_t at = dynamic->d_un.d_ptr < base ? base + dynamic->d_un.d_ptr : dynamic->d_un.d_ptr;
        if (dynamic->d_tag == DT_SYMTAB) symbols = (const void *)at;
        if (dynamic->d_tag == DT_STRTAB) names = (const void *)at;
    }
    /* The names follow the symbols in every vDSO that there is. */
    for (const ElfW(Sym) *symbol = symbols; symbol && (const char *)symbol < names; symbol++) {
        const char *name = names + symbol->st_name;
        if (!strcmp(name, "__vdso_clock_gettime") || !strcmp(name, "__kernel_clock_gettime"))
            divert(base + symbol->st_value, (uintptr_t)stepped_clock);
    }
}

__attribute__((constructor)) static void start(void) {
    const char *where = getenv("CHAOS_FAULTS");
    char path[PATH_BYTES + 16];
    if (!where || strlen(where) >= sizeof directory) return;
    strcpy(directory, where);
    snprintf(path, sizeof path, "%s/cell", directory);
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0) return;
    void *mapped = mmap(NULL, sizeof(struct cell), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (mapped == MAP_FAILED) return;
    cell = mapped;
    load(cell->generation);
    if (getenv("CHAOS_FAULTS_CLOCKS")) divert_clocks();
}
