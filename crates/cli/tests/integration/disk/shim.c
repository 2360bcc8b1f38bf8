/*
 * Loaded into the server with LD_PRELOAD. Writes down, in their order, everything that changes
 * files below a directory, and what is synced; and makes the disk fail as it is told.
 *
 * A write is written down after it has returned, a sync before it is called and after it has
 * returned: so what stands before the begin of a sync was done before it. Syncs are not carried
 * out, since the log is what counts; they take as long as they are told to, so that whoever does
 * not wait for them is seen.
 *
 * What the log does not know (a shared mapping, a copy inside the kernel) is written down as alien.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum op { START = 1, CREATE, TRUNCATE, WRITE, SYNC, SYNCED, MKDIR, RENAME, UNLINK, LINK, ALIEN = 12 };

/* As the test reads it; little-endian, no padding. */
struct record {
    uint32_t op, error;
    uint64_t ino, at;
    uint32_t first, second; /* bytes that follow */
};

/* What one thing is done to that one thread does with one file. */
struct aim {
    uint32_t left, hits, error;
    char file[28]; /* how its path ends */
    char thread[16]; /* empty: any */
};

/* What the test orders; it may change at any time. */
struct orders {
    uint32_t write_error;  /* errno of writes and of new names; 0: none */
    uint32_t sync_error;   /* errno of syncs */
    uint32_t one_in;       /* so many, at random; 0 and 1: all */
    uint32_t longest_sync; /* microseconds */
    uint32_t unsynced;     /* 1: syncs of files are told done and not written down; 2: of directories */
    uint32_t faults;       /* counted here */
    uint32_t left;         /* changes until the process is killed; 0: no end */
    uint32_t forgets;      /* 1: what a failed sync was to bring is gone from the file */
    struct aim sync, write; /* so many of the next fail */
};

#define REAL(name) ((__typeof__(&name))real(#name))
#define INODES 65536

static int log_fd = -1;
static char root[4096];
static size_t root_len;
static dev_t device;
static ino_t root_ino;
static volatile struct orders *orders;
static uint64_t inodes[INODES];
static uint8_t watched_inodes[INODES];
static uint64_t syncs, chance;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* Held from before a change until it is written down: a kill comes between two of them. */
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;

static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) abort();
    return found;
}

static void enter(void) {
    pthread_mutex_lock(&turn);
    if (orders->left && --orders->left == 0) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
}

static void leave(void) { pthread_mutex_unlock(&turn); }

static void note(enum op op, int error, uint64_t ino, uint64_t at, const void *first, size_t n,
                 const void *second, size_t m) {
    int before = errno;
    struct record head = {op, (uint32_t)error, ino, at, (uint32_t)n, (uint32_t)m};
    struct iovec parts[3] = {{&head, sizeof head}, {(void *)first, n}, {(void *)second, m}};
    ssize_t all = (ssize_t)(sizeof head + n + m);
    /* One call on a file opened with O_APPEND: whole, and in one order with those of others. */
    if (REAL(writev)(log_fd, parts, 3) != all) abort();
    errno = before;
}

static uint64_t place_of(uint64_t ino) {
    uint64_t i = ino % INODES;
    while (inodes[i] && inodes[i] != ino) i = (i + 1) % INODES;
    return i;
}

/* A number that was of a file of ours is given to another once that is gone. */
static void watch(uint64_t ino, int is_ours) {
    pthread_mutex_lock(&lock);
    uint64_t i = place_of(ino);
    if (is_ours || inodes[i]) inodes[i] = ino, watched_inodes[i] = (uint8_t)is_ours;
    pthread_mutex_unlock(&lock);
}

static int is_watched(uint64_t ino) {
    pthread_mutex_lock(&lock);
    uint64_t i = place_of(ino);
    int found = inodes[i] && watched_inodes[i];
    pthread_mutex_unlock(&lock);
    return found;
}

/* The inode of a file or directory of ours, else 0. */
static uint64_t ours(int fd) {
    struct stat st;
    if (log_fd < 0 || fd == log_fd || fstat(fd, &st) || st.st_dev != device) return 0;
    if (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode)) return 0;
    return is_watched(st.st_ino) ? st.st_ino : 0;
}

/* The whole path of something below the root that is to be watched, else NULL. */
static const char *path_of(int dir, const char *path, char *into) {
    if (log_fd < 0) return NULL;
    if (path[0] == '/') {
        snprintf(into, 4096, "%s", path);
    } else {
        char base[2048], link[64];
        ssize_t n;
        if (dir == AT_FDCWD) {
            if (!getcwd(base, sizeof base)) return NULL;
        } else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
            if ((n = readlink(link, base, sizeof base - 1)) < 0) return NULL;
            base[n] = 0;
        }
        snprintf(into, 4096, "%s/%s", base, path);
    }
    if (strncmp(into, root, root_len) || into[root_len] != '/') return NULL;
    /* Logs promise nothing, a lock has no content, and SQLite makes shared memory anew. */
    if (strstr(into, "/server.log") || strstr(into, "-shm") || strstr(into, ".lock")) return NULL;
    return into;
}

/* Whether it is to fail now. */
static int fault(uint32_t error) {
    if (!orders || !error) return 0;
    if (orders->one_in > 1) {
        pthread_mutex_lock(&lock);
        chance ^= chance << 13, chance ^= chance >> 7, chance ^= chance << 17;
        uint64_t drawn = chance % orders->one_in;
        pthread_mutex_unlock(&lock);
        if (drawn) return 0;
    }
    __sync_fetch_and_add(&orders->faults, 1);
    errno = (int)error;
    return 1;
}

static int no_room(void) { return orders && fault(orders->write_error); }

static int is_aimed_at(volatile struct aim *aim, int fd) {
    char link[64], path[4096], thread[16] = "", file[sizeof aim->file], by[sizeof aim->thread];
    if (!aim->left) return 0;
    memcpy(file, (const void *)aim->file, sizeof file), memcpy(by, (const void *)aim->thread, sizeof by);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path), end = (ssize_t)strnlen(file, sizeof file);
    if (n < end || memcmp(path + n - end, file, (size_t)end)) return 0;
    prctl(PR_GET_NAME, thread);
    return !by[0] || !strncmp(thread, by, sizeof by);
}

static int aimed_fault(volatile struct aim *aim, int fd) {
    if (!is_aimed_at(aim, fd)) return 0;
    aim->left--, aim->hits++;
    __sync_fetch_and_add(&orders->faults, 1);
    errno = (int)aim->error;
    return 1;
}

__attribute__((constructor)) static void start(void) {
    const char *dir = getenv("DISK_ROOT"), *log = getenv("DISK_LOG"), *how = getenv("DISK_ORDERS");
    if (!dir || !log || !how) return;
    struct stat st;
    if (stat(dir, &st)) abort();
    device = st.st_dev, root_ino = st.st_ino;
    root_len = (size_t)snprintf(root, sizeof root, "%s", dir);
    int fd = REAL(open)(how, O_RDWR | O_CLOEXEC);
    if (fd < 0) abort();
    orders = REAL(mmap)(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (orders == MAP_FAILED) abort();
    close(fd);
    chance = (uint64_t)getpid() * 0x9E3779B97F4A7C15u + 1;
    log_fd = REAL(open)(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (log_fd < 0) abort();
    watch(st.st_ino, 1);
    note(START, 0, st.st_ino, 0, root, root_len, NULL, 0);
    /* Below it only this program works. */
    unsetenv("LD_PRELOAD");
}

/* ---- names */

static int open_in_turn(int dir, const char *path, int flags, mode_t mode, const char *watched) {
    struct stat st;
    int is_new = watched && (flags & O_CREAT) && fstatat(dir, path, &st, 0) && errno == ENOENT;
    if (is_new && no_room()) return -1;
    int fd = REAL(openat)(dir, path, flags, mode);
    if (fd < 0 || log_fd < 0 || fstat(fd, &st) || st.st_dev != device) return fd;
    int is_root = S_ISDIR(st.st_mode) && st.st_ino == root_ino;
    watch(st.st_ino, watched || is_root);
    if (!watched) return fd;
    if (is_new) {
        note(CREATE, 0, st.st_ino, 0, watched, strlen(watched), NULL, 0);
    } else if ((flags & O_TRUNC) && S_ISREG(st.st_mode)) {
        note(TRUNCATE, 0, st.st_ino, 0, NULL, 0, NULL, 0);
    }
    return fd;
}

static int opened(int dir, const char *path, int flags, mode_t mode) {
    char whole[4096];
    const char *watched = path_of(dir, path, whole);
    if (watched) enter();
    int fd = open_in_turn(dir, path, flags, mode, watched);
    if (watched) leave();
    return fd;
}

static mode_t mode_of(int flags, va_list rest) {
    return flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;
}

#define OPEN(name)                                        \
    int name(const char *path, int flags, ...) {          \
        va_list rest;                                     \
        va_start(rest, flags);                            \
        mode_t mode = mode_of(flags, rest);               \
        va_end(rest);                                     \
        return opened(AT_FDCWD, path, flags, mode);       \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                      \
    int name(int dir, const char *path, int flags, ...) { \
        va_list rest;                                     \
        va_start(rest, flags);                            \
        mode_t mode = mode_of(flags, rest);               \
        va_end(rest);                                     \
        return opened(dir, path, flags, mode);            \
    }
/* REAL(openat) is the next one's, not this. */
OPENAT(openat)
OPENAT(openat64)

int mkdirat(int dir, const char *path, mode_t mode) {
    char whole[4096];
    const char *watched = path_of(dir, path, whole);
    struct stat st;
    if (!watched) return REAL(mkdirat)(dir, path, mode);
    enter();
    int done = no_room() ? -1 : REAL(mkdirat)(dir, path, mode);
    if (!done && !fstatat(dir, path, &st, 0)) {
        watch(st.st_ino, 1);
        note(MKDIR, 0, st.st_ino, 0, watched, strlen(watched), NULL, 0);
    }
    leave();
    return done;
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

static void two(enum op op, const char *from, const char *to) {
    if (from && to) {
        note(op, 0, 0, 0, from, strlen(from), to, strlen(to));
    } else {
        note(ALIEN, 0, 0, 0, "a name from elsewhere", 21, NULL, 0);
    }
}

int renameat(int a, const char *from, int b, const char *to) {
    char whole[2][4096];
    const char *first = path_of(a, from, whole[0]), *second = path_of(b, to, whole[1]);
    struct stat x, y;
    if (!first && !second) return REAL(renameat)(a, from, b, to);
    enter();
    /* Two names of one file: nothing is done. */
    int same = !fstatat(a, from, &x, 0) && !fstatat(b, to, &y, 0) && x.st_ino == y.st_ino;
    int done = REAL(renameat)(a, from, b, to);
    if (!done && !same) two(RENAME, first, second);
    leave();
    return done;
}
int rename(const char *from, const char *to) { return renameat(AT_FDCWD, from, AT_FDCWD, to); }

int linkat(int a, const char *from, int b, const char *to, int flags) {
    char whole[2][4096];
    const char *first = path_of(a, from, whole[0]), *second = path_of(b, to, whole[1]);
    if (!first && !second) return REAL(linkat)(a, from, b, to, flags);
    enter();
    int done = no_room() ? -1 : REAL(linkat)(a, from, b, to, flags);
    if (!done) two(LINK, first, second);
    leave();
    return done;
}
int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

int unlinkat(int dir, const char *path, int flags) {
    char whole[4096];
    const char *watched = path_of(dir, path, whole);
    if (!watched) return REAL(unlinkat)(dir, path, flags);
    enter();
    int done = REAL(unlinkat)(dir, path, flags);
    if (!done) note(UNLINK, 0, 0, 0, watched, strlen(watched), NULL, 0);
    leave();
    return done;
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

/* ---- content */

/* What stood before where something was written since the last sync; newest first. */
struct before {
    struct before *older;
    int64_t at;
    size_t n;
    uint64_t ino;
    uint8_t bytes[];
};
static struct before *kept;

/* The same file to read or to write: `fd`, or a new descriptor if it is for the other only. */
static int with_mode(int fd, int mode) {
    int has = fcntl(fd, F_GETFL) & O_ACCMODE;
    if (has == O_RDWR || has == mode) return fd;
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return REAL(open)(path, mode | O_CLOEXEC);
}

/* Called in turn. */
static void keep(int fd, int64_t at, const struct iovec *part) {
    struct stat st;
    if (!orders->forgets || fstat(fd, &st)) return;
    if (at < 0) at = lseek(fd, 0, SEEK_CUR);
    struct before *one = calloc(1, sizeof *one + part->iov_len);
    if (!one) abort();
    *one = (struct before){kept, at, part->iov_len, st.st_ino};
    /* What was beyond the end is zeros. */
    int from = with_mode(fd, O_RDONLY);
    if (pread(from, one->bytes, one->n, at) < 0) abort();
    if (from != fd) close(from);
    kept = one;
}

/* A sync has ended: nothing of before is needed any more, or all of it is there again. */
static void forget(int fd, uint64_t ino, int fails) {
    int to = fails ? with_mode(fd, O_WRONLY) : fd;
    for (struct before **at = &kept, *one; (one = *at);) {
        if (one->ino != ino) {
            at = &one->older;
            continue;
        }
        if (fails) {
            if (REAL(pwrite)(to, one->bytes, one->n, one->at) != (ssize_t)one->n) abort();
            note(WRITE, 0, ino, (uint64_t)one->at, one->bytes, one->n, NULL, 0);
        }
        *at = one->older;
        free(one);
    }
    if (to != fd) close(to);
}

#define WRITER(call, parts, at)                                                \
    {                                                                          \
        uint64_t ino = ours(fd);                                               \
        if (!ino) return call;                                                 \
        enter();                                                               \
        int fails = no_room() || aimed_fault(&orders->write, fd);              \
        if (!fails) keep(fd, at, parts);                                       \
        ssize_t done = fails ? -1 : call;                                      \
        if (done > 0) {                                                        \
            int64_t end = at;                                                  \
            if (end < 0) end = lseek(fd, 0, SEEK_CUR) - done;                  \
            written(ino, (uint64_t)end, parts, (size_t)done);                  \
        }                                                                      \
        leave();                                                               \
        return done;                                                           \
    }

static void written(uint64_t ino, uint64_t at, const struct iovec *parts, size_t left) {
    for (; left; parts++) {
        size_t n = parts->iov_len < left ? parts->iov_len : left;
        if (n) note(WRITE, 0, ino, at, parts->iov_base, n, NULL, 0);
        at += n, left -= n;
    }
}

ssize_t write(int fd, const void *data, size_t n) {
    struct iovec one = {(void *)data, n};
    WRITER(REAL(write)(fd, data, n), &one, -1)
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) {
    struct iovec one = {(void *)data, n};
    WRITER(REAL(pwrite)(fd, data, n, at), &one, at)
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) { return pwrite(fd, data, n, at); }
ssize_t writev(int fd, const struct iovec *parts, int n) {
    WRITER(REAL(writev)(fd, parts, n), parts, -1)
}
ssize_t pwritev(int fd, const struct iovec *parts, int n, off_t at) {
    WRITER(REAL(pwritev)(fd, parts, n, at), parts, at)
}
ssize_t pwritev64(int fd, const struct iovec *p, int n, off64_t at) { return pwritev(fd, p, n, at); }

int ftruncate(int fd, off_t size) {
    uint64_t ino = ours(fd);
    struct stat st;
    if (!ino) return REAL(ftruncate)(fd, size);
    enter();
    int full = !fstat(fd, &st) && st.st_size < size && no_room();
    int done = full ? -1 : REAL(ftruncate)(fd, size);
    if (!done) note(TRUNCATE, 0, ino, (uint64_t)size, NULL, 0, NULL, 0);
    leave();
    return done;
}
int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }

static void alien(int fd, const char *what) {
    uint64_t ino = ours(fd);
    if (ino) note(ALIEN, 0, ino, 0, what, strlen(what), NULL, 0);
}

int fallocate(int fd, int mode, off_t at, off_t n) {
    alien(fd, "fallocate");
    return REAL(fallocate)(fd, mode, at, n);
}
int fallocate64(int fd, int mode, off64_t at, off64_t n) { return fallocate(fd, mode, at, n); }
int posix_fallocate(int fd, off_t at, off_t n) {
    alien(fd, "posix_fallocate");
    return REAL(posix_fallocate)(fd, at, n);
}
int posix_fallocate64(int fd, off64_t at, off64_t n) { return posix_fallocate(fd, at, n); }
ssize_t copy_file_range(int from, off64_t *a, int to, off64_t *b, size_t n, unsigned flags) {
    alien(to, "copy_file_range");
    return REAL(copy_file_range)(from, a, to, b, n, flags);
}
void *mmap(void *where, size_t n, int rights, int flags, int fd, off_t at) {
    if ((flags & MAP_SHARED) && (rights & PROT_WRITE)) alien(fd, "a shared mapping");
    return REAL(mmap)(where, n, rights, flags, fd, at);
}
void *mmap64(void *where, size_t n, int rights, int flags, int fd, off64_t at) {
    return mmap(where, n, rights, flags, fd, at);
}

/* ---- syncs */

static int synced(int fd, int (*carry_out)(int)) {
    struct stat st;
    uint64_t ino = ours(fd);
    if (!ino || fstat(fd, &st)) return carry_out(fd);
    uint64_t number = __sync_add_and_fetch(&syncs, 1) | (uint64_t)getpid() << 40;
    int quiet = orders->unsynced & (S_ISDIR(st.st_mode) ? 2 : 1);
    enter();
    if (!quiet) note(SYNC, 0, ino, number, NULL, 0, NULL, 0);
    leave();
    if (orders->longest_sync) {
        pthread_mutex_lock(&lock);
        chance ^= chance << 13, chance ^= chance >> 7, chance ^= chance << 17;
        uint64_t drawn = chance % orders->longest_sync;
        pthread_mutex_unlock(&lock);
        usleep((useconds_t)drawn);
    }
    int error = fault(orders->sync_error) || aimed_fault(&orders->sync, fd) ? errno : 0;
    enter();
    if (!quiet) note(SYNCED, error, ino, number, NULL, 0, NULL, 0);
    if (orders->forgets) forget(fd, ino, error);
    leave();
    errno = error;
    return error ? -1 : 0;
}
int fsync(int fd) { return synced(fd, REAL(fsync)); }
int fdatasync(int fd) { return synced(fd, REAL(fdatasync)); }
