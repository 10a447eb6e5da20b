/* client.c: puts entries over HTTP/1.1 and measures; one thread, so lean that it hardly takes from the servers' cores.
 *
 *     client PORT KEY SERIES_FILE META CONNECTIONS RATE BATCH WARM_UP_S SECONDS
 *
 * Each request carries fresh random UUIDs and goes to one of the series in the file, drawn at random. RATE 0 is a
 * closed loop: each connection sends when it has its answer. Otherwise requests fall due at random (Poisson) RATE times
 * a second, whether or not answers came, and latency counts from when a request was due: what waits for a slow server
 * is counted (no coordinated omission). BATCH 0 is PUT .../entries/{id}; otherwise POST .../entries with so many ids.
 *
 * Prints the line "begin" after the warm-up, "end" when the time is over, and when what is under way has been answered,
 * a line of JSON. Latencies are in ms.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { UUID = 36, EVENTS = 256, SUB = 128, ANSWER_MAX = 8 << 20, LATE_S = 10 };

typedef struct {
  int fd;
  int busy;
  int64_t due; /* when the request at hand was to be sent, in ns */
  char *out, *in;
  size_t out_sent, in_size, in_len;
} Connection;

static int port, connections, batch, epoll, timer;
static double rate;
static const char *key, *meta;
static char *series;
static size_t series_count, out_len, series_at, *id_at, ids;
static Connection *all, **idle; /* idle: a ring, so that none rests for as long as a server takes to close it */
static int idle_first, idle_count, busy;
static int64_t begin, end, next_due;
static uint64_t counts[64 * SUB], answers, late_answers, acknowledged, errors, answer_bytes, random_state[2];

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static uint64_t random_bits(void) { /* xoroshiro128+ */
  uint64_t a = random_state[0], b = random_state[1], sum = a + b;
  b ^= a;
  random_state[0] = ((a << 24) | (a >> 40)) ^ b ^ (b << 16);
  random_state[1] = (b << 37) | (b >> 27);
  return sum;
}

static void write_uuid(char *to) {
  static const char hex[] = "0123456789abcdef", shape[] = "xxxxxxxx-xxxx-4xxx-8xxx-xxxxxxxxxxxx";
  uint64_t words[] = {random_bits(), random_bits()};
  for (int i = 0, digit = 0; i < UUID; i++) {
    to[i] = shape[i];
    if (shape[i] == 'x') {
      to[i] = hex[words[digit / 16] >> (digit % 16 * 4) & 15];
      digit++;
    }
  }
}

/* latencies: SUB buckets for each power of two of microseconds, so that a percentile is within 1 % */

static size_t bucket_of(uint64_t us) {
  if (us < SUB) return us;
  int power = 63 - __builtin_clzll(us);
  return (size_t)(power - 6) * (SUB / 2) + (us >> (power - 6));
}

static double bucket_ms(size_t bucket) {
  if (bucket < SUB) return bucket / 1e3;
  int power = (int)(bucket / (SUB / 2)) - 1;
  return ldexp((double)(bucket % (SUB / 2) + SUB / 2) + 0.5, power) / 1e3;
}

static double percentile(double share) {
  uint64_t wanted = (uint64_t)ceil(share * answers), seen = 0;
  for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
    if ((seen += counts[i]) >= wanted && seen) return bucket_ms(i);
  return 0;
}

/* requests: written once for each connection; only the ids in them change */

static char *write_request(void) {
  size_t room = (strlen(meta) + 80) * (batch ? batch : 1) + strlen(key) + 512;
  char *body = malloc(room), *out = malloc(2 * room), *at = body;
  if (!body || !out) fail("malloc");
  static const char blank[UUID + 1] = "____________________________________";
  if (!batch) at += sprintf(at, "{\"meta\":%s}", meta);
  for (int i = 0; i < batch; i++)
    at += sprintf(at, "%s{\"id\":\"%s\",\"meta\":%s}", i ? "," : "{\"list\":[", blank, meta);
  if (batch) at += sprintf(at, "]}");
  size_t head = (size_t)sprintf(out,
    "%s /sequence/v1/series/%s/entries%s%s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer %s\r\n"
    "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n",
    batch ? "POST" : "PUT", blank, batch ? "" : "/", batch ? "" : blank, port, key, (size_t)(at - body));
  memcpy(out + head, body, (size_t)(at - body));
  out_len = head + (size_t)(at - body);
  ids = 0;
  char *found = out;
  while ((found = memmem(found, (size_t)(out + out_len - found), blank, UUID))) {
    if (found < out + 40) series_at = (size_t)(found - out);
    else id_at[ids++] = (size_t)(found - out);
    found += UUID;
  }
  free(body);
  return out;
}

static void watch(Connection *c, int how, uint32_t events) {
  struct epoll_event event = {.events = events, .data.ptr = c};
  if (epoll_ctl(epoll, how, c->fd, &event)) fail("epoll_ctl");
}

static void dial(Connection *c) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int one = 1;
  c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&to, sizeof to)) fail("connect");
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  fcntl(c->fd, F_SETFL, O_NONBLOCK);
  watch(c, EPOLL_CTL_ADD, EPOLLIN);
}

static void dial_again(Connection *c) {
  close(c->fd);
  dial(c);
}

static void push(Connection *c) {
  while (c->out_sent < out_len) {
    ssize_t sent = send(c->fd, c->out + c->out_sent, out_len - c->out_sent, MSG_NOSIGNAL);
    if (sent < 0 && errno == EAGAIN) {
      watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
      return;
    }
    if (sent < 0) return; /* closed: reading says so */
    c->out_sent += (size_t)sent;
  }
}

static void send_next(Connection *c, int64_t due) {
  memcpy(c->out + series_at, series + UUID * (random_bits() % series_count), UUID);
  for (size_t i = 0; i < ids; i++) write_uuid(c->out + id_at[i]);
  c->busy = 1, busy++;
  c->due = due;
  c->out_sent = c->in_len = 0;
  push(c);
}

/* Counts an answer: in a closed loop when it came in time, in an open one when its request was due in time. A refusal
 * counts at any time. */
static void count(Connection *c, int ok, size_t bytes) {
  int64_t now = now_ns(), decides = rate > 0 ? c->due : now;
  acknowledged += ok ? ids : 0;
  if (!ok && !errors++) fprintf(stderr, "%.*s\n", (int)(c->in_len < 800 ? c->in_len : 800), c->in);
  if (!ok || decides < begin || decides >= end) return;
  answers++;
  late_answers += now >= end;
  answer_bytes += bytes;
  size_t bucket = bucket_of((uint64_t)(now - c->due) / 1000);
  if (bucket >= sizeof counts / sizeof *counts) bucket = sizeof counts / sizeof *counts - 1;
  counts[bucket]++;
}

static void rest(Connection *c) {
  c->busy = 0, busy--;
  int64_t now = now_ns();
  if (rate > 0) idle[(idle_first + idle_count++) % connections] = c;
  else if (now < end) send_next(c, now);
}

/* Looks at what has come: 0 while the answer is not whole. */
static int take(Connection *c) {
  c->in[c->in_len] = 0;
  char *line = c->in;
  size_t bytes = SIZE_MAX;
  int closing = 0;
  while ((line = strchr(line, '\n')) && *++line != '\r') {
    if (!strncasecmp(line, "content-length:", 15)) bytes = strtoul(line + 15, NULL, 10);
    else if (!strncasecmp(line, "connection: close", 17)) closing = 1;
  }
  if (!line || !line[1]) return 0;
  if (bytes == SIZE_MAX) {
    fprintf(stderr, "an answer without Content-Length\n");
    exit(1);
  }
  if (c->in_len < (size_t)(line + 2 - c->in) + bytes) return 0;
  count(c, c->in_len > 12 && !memcmp(c->in + 9, "200", 3), bytes);
  if (closing) dial_again(c);
  rest(c);
  return 1;
}

static void receive(Connection *c) {
  for (;;) {
    if (c->in_len + 1 >= c->in_size) {
      c->in_size *= 2;
      if (c->in_size > ANSWER_MAX || !(c->in = realloc(c->in, c->in_size))) fail("answer");
    }
    ssize_t got = recv(c->fd, c->in + c->in_len, c->in_size - c->in_len - 1, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
      int was_busy = c->busy;
      if (was_busy) count(c, 0, 0);
      dial_again(c);
      if (was_busy) rest(c);
      return;
    }
    c->in_len += (size_t)got;
    if (c->busy && take(c)) return;
  }
}

/* Open loop: sends what is due, as far as there are idle connections, and sets the timer for the next. */
static void send_due(void) {
  int64_t now = now_ns();
  while (idle_count && next_due <= now && next_due < end) {
    Connection *c = idle[idle_first];
    idle_first = (idle_first + 1) % connections, idle_count--;
    send_next(c, next_due);
    next_due += (int64_t)(-log1p(-(double)(random_bits() >> 11) / 9007199254740992.0) / rate * 1e9);
  }
  if (idle_count && next_due < end) {
    struct itimerspec when = {.it_value = {next_due / 1000000000, next_due % 1000000000}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
  }
}

static int is_over(int64_t now) {
  if (now < end) return 0;
  return now > end + LATE_S * 1000000000LL || (!busy && (rate <= 0 || next_due >= end));
}

static void run_until(int64_t until) {
  struct epoll_event events[EVENTS];
  for (int64_t now = now_ns(); until ? now < until : !is_over(now); now = now_ns()) {
    if (rate > 0) send_due();
    int found = epoll_wait(epoll, events, EVENTS, 10);
    if (found < 0 && errno != EINTR) fail("epoll_wait");
    for (int i = 0; i < found; i++) {
      Connection *c = events[i].data.ptr;
      uint64_t expired;
      if (!c) {
        if (read(timer, &expired, sizeof expired) < 0 && errno != EAGAIN) fail("timer");
        continue;
      }
      if (events[i].events & EPOLLOUT) {
        watch(c, EPOLL_CTL_MOD, EPOLLIN);
        push(c);
      }
      if (events[i].events & ~EPOLLOUT) receive(c);
    }
  }
}

static void read_series(const char *path) {
  FILE *file = fopen(path, "r");
  char line[128];
  if (!file) fail(path);
  while (fgets(line, sizeof line, file)) {
    if (strlen(line) < UUID) continue;
    if (!(series = realloc(series, UUID * (series_count + 1)))) fail("realloc");
    memcpy(series + UUID * series_count++, line, UUID);
  }
  fclose(file);
  if (!series_count) fail("no series");
}

static double cpu_s(void) {
  struct rusage used;
  getrusage(RUSAGE_SELF, &used);
  return used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static void prepare(void) {
  id_at = malloc(sizeof *id_at * (size_t)(batch + 1));
  all = calloc((size_t)connections, sizeof *all);
  idle = calloc((size_t)connections, sizeof *idle);
  epoll = epoll_create1(0);
  timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  struct epoll_event tick = {.events = EPOLLIN, .data.ptr = NULL};
  if (!id_at || !all || !idle || epoll < 0 || timer < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &tick)) fail("start");
  if (getrandom(random_state, sizeof random_state, 0) != sizeof random_state) fail("getrandom");
  for (Connection *c = all; c < all + connections; c++) {
    c->out = write_request();
    c->in = malloc(c->in_size = 4096);
    dial(c);
  }
}

int main(int argc, char **argv) {
  if (argc != 10) {
    fprintf(stderr, "usage: client PORT KEY SERIES_FILE META CONNECTIONS RATE BATCH WARM_UP_S SECONDS\n");
    return 2;
  }
  port = atoi(argv[1]), key = argv[2], meta = argv[4], connections = atoi(argv[5]), rate = atof(argv[6]);
  batch = atoi(argv[7]);
  read_series(argv[3]);
  prepare();
  int64_t start = now_ns();
  begin = start + (int64_t)(atof(argv[8]) * 1e9);
  end = begin + (int64_t)(atof(argv[9]) * 1e9);
  next_due = start;
  busy = connections; /* until they rest */
  for (Connection *c = all; c < all + connections; c++) rest(c);
  run_until(begin);
  printf("begin\n");
  fflush(stdout);
  double cpu_before = cpu_s();
  run_until(end);
  double cpu = cpu_s() - cpu_before, seconds = (end - begin) / 1e9;
  printf("end\n");
  fflush(stdout);
  run_until(0);
  uint64_t waiting = 0; /* due in time and never answered */
  for (Connection *c = all; c < all + connections; c++) waiting += c->busy && c->due >= begin;
  if (rate > 0 && next_due < end) waiting += (uint64_t)((end - next_due) / 1e9 * rate);
  double per_s = (rate > 0 ? answers - late_answers : answers) / seconds;
  printf("{\"answers\":%llu,\"seconds\":%.3f,\"per_s\":%.1f,\"numbers_per_s\":%.1f,\"p50\":%.4f,\"p90\":%.4f,"
    "\"p99\":%.4f,\"p999\":%.4f,\"max\":%.4f,\"errors\":%llu,\"unanswered\":%llu,\"acknowledged\":%llu,"
    "\"under_way\":%llu,\"answer_bytes\":%.1f,\"cpu_s\":%.4f}\n",
    (unsigned long long)answers, seconds, per_s, per_s * (batch ? batch : 1), percentile(.5), percentile(.9),
    percentile(.99), percentile(.999), percentile(1), (unsigned long long)errors, (unsigned long long)waiting,
    (unsigned long long)acknowledged, (unsigned long long)busy * ids, answers ? (double)answer_bytes / answers : 0, cpu);
  return 0;
}
