/* Loaded with LD_PRELOAD: makes one system call fail, or never return, where and when the environment says.
 * FAULT_CALL: write, fsync, fdatasync, rename or close. FAULT_PATH: the file's name ends so. FAULT_AFTER: that many
 * calls go through first. FAULT_ERRNO: what the call fails with from then on; 0 makes it wait for ever instead.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int fails(const char* call, const char* path) {
  static int calls = 0;
  const char *wanted = getenv("FAULT_CALL"), *end = getenv("FAULT_PATH"), *after = getenv("FAULT_AFTER");
  if (!wanted || !end || strcmp(call, wanted) != 0) return 0;
  const size_t length = strlen(path), tail = strlen(end);
  if (length < tail || strcmp(path + length - tail, end) != 0) return 0;
  if (__atomic_fetch_add(&calls, 1, __ATOMIC_SEQ_CST) < (after ? atoi(after) : 0)) return 0;
  const int error = atoi(getenv("FAULT_ERRNO"));
  if (error == 0) {
    fprintf(stderr, "%s waits\n", call);
    for (;;) pause();
  }
  errno = error;
  return 1;
}

static int fails_on(const char* call, int fd) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = '\0';
  return fails(call, path);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void* data, size_t bytes) {
  return fails_on("write", fd) ? -1 : NEXT(write)(fd, data, bytes);
}

int fsync(int fd) { return fails_on("fsync", fd) ? -1 : NEXT(fsync)(fd); }

int fdatasync(int fd) { return fails_on("fdatasync", fd) ? -1 : NEXT(fdatasync)(fd); }

int rename(const char* from, const char* to) { return fails("rename", to) ? -1 : NEXT(rename)(from, to); }

/* The descriptor is gone in either case, as Linux does it. */
int close(int fd) {
  const int failed = fails_on("close", fd);
  const int result = NEXT(close)(fd);
  if (!failed) return result;
  errno = atoi(getenv("FAULT_ERRNO"));
  return -1;
}
