/* Rust's start-up opens /dev/null in the place of a closed standard output, so that what is written
   there is lost without an error. This runs before it and opens /dev/null for reading only, which the
   program recognises: see `check_open` in src/output.rs. */

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

__attribute__((constructor)) static void keep_stdout_closed(void) {
    if (fcntl(STDOUT_FILENO, F_GETFD) != -1 || errno != EBADF) return;
    int fd = open("/dev/null", O_RDONLY);
    if (fd == -1 || fd == STDOUT_FILENO) return;
    dup2(fd, STDOUT_FILENO);
    close(fd);
}
