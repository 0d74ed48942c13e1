// SPDX-License-Identifier: GPL-2.0-only
/*
 * ttylink TTY PROGRAM [ARG..]
 *
 * Carries one connection at a time between a serial line and PROGRAM, an
 * inetd-style server (dropbear -i). The other end is orchestrator/machine/link.py.
 * Both sides send frames:
 *
 *     type (1 byte), length of the payload (2 bytes, little endian), payload (at
 *     most 4096 bytes)
 *
 *     H  guest to host, 4 bytes: connection number (0: none yet). "All that I send
 *        from here on belongs to this connection."
 *     O  host to guest, 4 bytes: connection number. Ends the current connection and
 *        opens a new one. Answered by H.
 *     D  both ways: bytes of the connection.
 *     C  both ways, empty: the connection has ended on my side.
 *     A  guest to host, 4 bytes: total number of bytes read from the line so far
 *        (modulo 2^32).
 *
 * A exists because nothing else limits what the host sends. QEMU's UART hands over
 * a byte whenever its FIFO has room, the kernel's interrupt handler always takes
 * it, and the tty layer drops what exceeds 64 KiB when nobody reads. That happens
 * when every CPU of the guest is busy executing a patched instruction. So the host
 * never has more than 16 KiB in flight. The other direction needs no such limit:
 * write() blocks, and the host always reads.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define MAX_PAYLOAD 4096
/* A quarter of the host's window, so that an acknowledgement arrives before it is used up. */
#define ACK_EVERY 4096

static int tty;
static int server = -1;		/* our end of the socket pair, -1 without a connection */
static pid_t server_pid;
static char **server_argv;

static uint8_t inbox[3 + MAX_PAYLOAD];	/* read from the line, not yet a whole frame */
static size_t inbox_len;
/* For the server. The line is not read while this is not empty. */
static uint8_t pending[MAX_PAYLOAD];
static size_t pending_len;
static uint32_t total_read, total_acked;

static void die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	fprintf(stderr, "ttylink: ");
	vfprintf(stderr, format, args);
	fprintf(stderr, ": %s\n", strerror(errno));
	va_end(args);
	exit(1);
}

static void send_frame(char type, const void *payload, size_t len)
{
	uint8_t frame[3 + MAX_PAYLOAD] = { (uint8_t)type, len & 0xff, len >> 8 };
	size_t done = 0;

	memcpy(frame + 3, payload, len);
	while (done < len + 3) {
		ssize_t n = write(tty, frame + done, len + 3 - done);

		if (n < 0 && errno != EINTR)
			die("write to the line");
		if (n > 0)
			done += n;
	}
}

static void send_number(char type, uint32_t value)
{
	uint8_t raw[4] = { value, value >> 8, value >> 16, value >> 24 };

	send_frame(type, raw, sizeof(raw));
}

static void close_connection(void)
{
	if (server < 0)
		return;
	close(server);
	server = -1;
	pending_len = 0;
	/* A session whose client is gone must not go on running commands. */
	kill(-server_pid, SIGKILL);
}

static void open_connection(uint32_t number)
{
	int pair[2];

	close_connection();
	/*
	 * Only this process writes to `server`, and never more than it takes. So two
	 * directions that are both full cannot wait for each other.
	 */
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		die("socketpair (does the kernel have CONFIG_UNIX?)");
	server_pid = fork();
	if (server_pid < 0)
		die("fork");
	if (!server_pid) {
		setsid();
		dup2(pair[1], 0);
		dup2(pair[1], 1);
		execv(server_argv[0], server_argv);
		die("%s", server_argv[0]);
	}
	close(pair[1]);
	server = pair[0];
	send_number('H', number);
}

static void handle_frame(char type, const uint8_t *payload, size_t len)
{
	if (type == 'O' && len == 4)
		open_connection(payload[0] | payload[1] << 8 | payload[2] << 16 |
				(uint32_t)payload[3] << 24);
	else if (type == 'D' && server >= 0)
		memcpy(pending, payload, pending_len = len);
	else if (type == 'C')
		close_connection();
	/*
	 * Data for a connection that the server has just ended is dropped: the host
	 * has not read the C for it yet.
	 */
}

/* Handle the next whole frame in the inbox. Returns 0 if there is none. */
static int next_frame(void)
{
	size_t len;

	if (inbox_len < 3)
		return 0;
	len = inbox[1] | inbox[2] << 8;
	if (len > MAX_PAYLOAD) {
		errno = EPROTO;
		die("a frame of %zu bytes: the line has lost or changed data", len);
	}
	if (inbox_len < 3 + len)
		return 0;
	handle_frame((char)inbox[0], inbox + 3, len);
	inbox_len -= 3 + len;
	memmove(inbox, inbox + 3 + len, inbox_len);
	return 1;
}

static void read_line(void)
{
	ssize_t n = read(tty, inbox + inbox_len, sizeof(inbox) - inbox_len);

	if (n < 0 && errno != EINTR && errno != EAGAIN)
		die("read from the line");
	if (n <= 0)
		return;
	inbox_len += n;
	total_read += n;
	if (total_read - total_acked >= ACK_EVERY) {
		send_number('A', total_read);
		total_acked = total_read;
	}
}

static void read_server(void)
{
	uint8_t data[MAX_PAYLOAD];
	ssize_t n = recv(server, data, sizeof(data), MSG_DONTWAIT);

	if (n > 0) {
		send_frame('D', data, n);
	} else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
		close_connection();
		send_frame('C', "", 0);
	}
}

static void write_server(void)
{
	ssize_t n = send(server, pending, pending_len, MSG_DONTWAIT | MSG_NOSIGNAL);

	if (n > 0) {
		pending_len -= n;
		memmove(pending, pending + n, pending_len);
	} else if (errno != EAGAIN && errno != EINTR) {
		close_connection();
		send_frame('C', "", 0);
	}
}

/*
 * getrandom() blocks until the kernel has collected entropy, which may never happen
 * in a guest without devices (3.17 to 5.3). The keys of a connection that never
 * leaves this host need none, so claim that there is some. Before 4.8 it has to
 * overflow from one pool into another, in one work item for every 64 bits. So
 * repeat until getrandom() does not block.
 */
static void claim_entropy(void)
{
	struct {
		struct rand_pool_info info;
		char bytes[64];
	} pool = { .info = { .entropy_count = 512, .buf_size = 64 }, .bytes = "orchestrator" };
	int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC), tries;
	char byte;

	for (tries = 0; tries < 1000; tries++) {
		if (fd < 0 || ioctl(fd, RNDADDENTROPY, &pool)) {
			fprintf(stderr, "ttylink: cannot add entropy: %s\n", strerror(errno));
			break;
		}
		if (syscall(SYS_getrandom, &byte, 1, GRND_NONBLOCK) >= 0 || errno != EAGAIN)
			break;
		usleep(1000);
	}
	close(fd);
}

int main(int argc, char **argv)
{
	struct termios mode;

	if (argc < 3) {
		fprintf(stderr, "usage: ttylink TTY PROGRAM [ARG..]\n");
		return 2;
	}
	server_argv = argv + 2;
	if (getppid() == 1)	/* in the guest, not in a test on the host */
		claim_entropy();
	tty = open(argv[1], O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (tty < 0 || tcgetattr(tty, &mode))
		die("%s", argv[1]);
	cfmakeraw(&mode);
	mode.c_cflag |= CLOCAL | CREAD;
	/* QEMU does not pace by the speed, but derives the FIFO's timeout from it. */
	cfsetspeed(&mode, B115200);
	if (tcsetattr(tty, TCSAFLUSH, &mode))
		die("%s: raw mode", argv[1]);
	send_number('H', 0);

	for (;;) {
		struct pollfd fds[2] = {
			{ .fd = pending_len ? -1 : tty, .events = POLLIN },
			{ .fd = server, .events = POLLIN | (pending_len ? POLLOUT : 0) },
		};

		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			die("poll");
		if (fds[1].revents & POLLOUT)
			write_server();
		else if (fds[1].revents)
			read_server();
		while (!pending_len && next_frame())
			;
		if (fds[0].revents) {
			read_line();
			while (!pending_len && next_frame())
				;
		}
	}
}
