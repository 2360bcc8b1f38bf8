/* Rust's start-up opens /dev/null in the place of a closed standard stream, so that output is lost and
   input is empty without an error. This runs before it and opens /dev/null the wrong way round, which
   the program recognises: see `check_open` in src/output.rs and `stdin` in src/ask.rs. */

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

static void keep_closed(int stream, int flags) {
    if (fcntl(stream, F_GETFD) != -1 || errno != EBADF) return;
    int fd = open("/dev/null", flags);
    if (fd == -1 || fd == stream) return;
    dup2(fd, stream);
    close(fd);
}

__attribute__((constructor)) static void keep_streams_closed(void) {
    keep_closed(STDIN_FILENO, O_WRONLY);
    keep_closed(STDOUT_FILENO, O_RDONLY);
}
