/* fourfold-clang: `fourfold clang --fast` for every file of a build without Python's start, which costs a tenth of a
 * small file's compile. launcher.py writes CLANG and WRAPPER (lists of strings) and POLICY above this and compiles it.
 *
 * It sends the arguments to the resident policy (resident_process.py), which makes the channel and keeps it; here the
 * compiler is started and waited for. Without a resident policy the wrapper in Python takes over, which starts one. */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define LONGEST 65536

static char *const clang[] = {CLANG};
static char *const wrapper[] = {WRAPPER};
#define COUNT(list) (sizeof(list) / sizeof *(list))

static void become(char *const *command, size_t words, char **arguments, size_t count, char *const *more, size_t extra) {
    char **all = calloc(words + count + extra + 1, sizeof *all);
    if (all != NULL) {
        memcpy(all, command, words * sizeof *all);
        memcpy(all + words, arguments, count * sizeof *all);
        if (extra > 0) memcpy(all + words + count, more, extra * sizeof *all);
        execvp(all[0], all);
    }
    fprintf(stderr, "fourfold: %s: %s\n", command[0], strerror(errno));
    _exit(127);
}

/* As resident.address. */
static int address(char *path, size_t size) {
    const char *base = getenv("XDG_RUNTIME_DIR");
    if (base == NULL || *base == '\0') base = getenv("TMPDIR");
    if (base == NULL || *base == '\0') base = "/tmp";
    struct stat policy, entry, own;
    DIR *folder = opendir(POLICY);
    if (folder == NULL) return -1;
    long long newest = 0;
    int failed = fstat(dirfd(folder), &policy);
    for (struct dirent *found; !failed && (found = readdir(folder)) != NULL;) {
        if (strcmp(found->d_name, ".") == 0 || strcmp(found->d_name, "..") == 0) continue;
        failed = fstatat(dirfd(folder), found->d_name, &entry, 0);
        long long time = entry.st_mtim.tv_sec * 1000000000LL + entry.st_mtim.tv_nsec;
        if (time > newest) newest = time;
    }
    closedir(folder);
    int length = snprintf(path, size, "%s/fourfold-%ju", base, (uintmax_t)getuid());
    if (failed || length >= (int)size || lstat(path, &own) != 0) return -1;
    if (own.st_uid != getuid() || (own.st_mode & 0170077) != 0040000) return -1; /* another user could enter it */
    length += snprintf(path + length, size - length, "/%jx-%jx-%llx", (uintmax_t)policy.st_dev,
                       (uintmax_t)policy.st_ino, newest);
    return length < (int)size ? 0 : -1;
}

static void wait_at_most(int connection, long seconds) {
    struct timeval time = {.tv_sec = seconds};
    setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
}

/* The connection, and its answer in `words`; -1 where there is none. */
static int ask(char **arguments, size_t count, char *words, size_t size) {
    static char joined[LONGEST];
    size_t length = 0;
    for (size_t index = 0; index < count; index++) {
        size_t bytes = strlen(arguments[index]) + 1;
        if (length + bytes > sizeof joined) return -1;
        memcpy(joined + length, arguments[index], bytes);
        length += bytes;
    }
    struct sockaddr_un place = {.sun_family = AF_UNIX};
    if (length == 0 || address(place.sun_path, sizeof place.sun_path) != 0) return -1;
    int connection = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (connection < 0) return -1;
    wait_at_most(connection, 10);
    ssize_t got = -1;
    if (connect(connection, (struct sockaddr *)&place, sizeof place) == 0 &&
        send(connection, joined, length, MSG_NOSIGNAL) == (ssize_t)length)
        got = recv(connection, words, size - 1, 0);
    if (got <= 0) {
        close(connection);
        return -1;
    }
    words[got] = '\0';
    return connection;
}

/* Hands over the compiler's pidfd. */
static int hand_over(int connection, pid_t compiler) {
    int ended = syscall(SYS_pidfd_open, compiler, 0);
    char byte = '+';
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {.header = {.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
    memcpy(CMSG_DATA(&control.header), &ended, sizeof ended);
    struct iovec data = {.iov_base = &byte, .iov_len = 1};
    struct msghdr message = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    return ended >= 0 && sendmsg(connection, &message, MSG_NOSIGNAL) == 1 ? 0 : -1;
}

int main(int argc, char **argv) {
    static char words[4096];
    char **arguments = argv + 1, base[4200];
    size_t count = argc - 1;
    int connection = ask(arguments, count, words, sizeof words);
    if (connection >= 0 && words[0] == '-') become(clang, COUNT(clang), arguments, count, NULL, 0); /* not for size */
    if (connection < 0 || words[0] != '+') become(wrapper, COUNT(wrapper), arguments, count, NULL, 0);
    snprintf(base, sizeof base, "-inliner-interactive-channel-base=%s", words + 1);
    char *options[] = {"-mllvm", "-enable-ml-inliner=release", "-mllvm", base};
    pid_t compiler = fork();
    if (compiler == 0) {
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        become(clang, COUNT(clang), arguments, count, options, COUNT(options));
    }
    strcpy(words, "it went away");
    wait_at_most(connection, 3600);
    ssize_t got = -1;
    if (compiler > 0 && hand_over(connection, compiler) == 0) got = recv(connection, words, sizeof words - 1, 0);
    if (got > 0) words[got] = '\0';
    int done = got > 0 && strcmp(words, "done") == 0, status = -1;
    if (compiler > 0) {
        if (!done) kill(compiler, SIGKILL);
        waitpid(compiler, &status, 0);
    }
    if (done && status == 0) return 0;
    const char *quiet = getenv("FOURFOLD_QUIET");
    if (quiet == NULL || strcmp(quiet, "1") != 0) {
        if (done)
            fprintf(stderr, "fourfold: plain clang: the advised compile ended with %d\n",
                    WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
        else
            fprintf(stderr, "fourfold: plain clang: the policy cannot be asked (%s)\n", words);
    }
    become(clang, COUNT(clang), arguments, count, NULL, 0);
}
