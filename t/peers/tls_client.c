// A client of TLS 1.3 that does what clients may do, at random: suites, resumed sessions, KeyUpdates, records cut anywhere,
// data that nobody has asked for. It follows an EventSource over each connection, publishes to it, and compares.
//
//     tls_client PORT CONNECTIONS SEED
//
// Prints one line for each connection that did not get what it should have; exit status 1 then.
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PATIENCE_MS = 60000, LARGEST = 40000, MESSAGES = 6 };

static int port;
static unsigned long long state;
static SSL_SESSION *session;
static char *wanted, *got;

static unsigned pick(unsigned below) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (unsigned)(state >> 11) % below;
}

static void die(const char *what) {
    perror(what);
    exit(2);
}

// A connection whose bytes pass through two buffers, so that they can be cut.
struct peer {
    int socket, number, chops;
    SSL *ssl;
    BIO *in, *out;
    char text[1 << 17];
    size_t len;
    int ended; // 1: close_notify, 2: the end without it
    char problem[200];
};

static void problem(struct peer *peer, const char *format, ...) {
    va_list list;
    va_start(list, format);
    if (!*peer->problem) vsnprintf(peer->problem, sizeof peer->problem, format, list);
    va_end(list);
}

static void connect_to(struct peer *peer) {
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port) };
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int one = 1;
    peer->socket = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(peer->socket, (struct sockaddr *)&address, sizeof address) != 0) die("connect");
    setsockopt(peer->socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

// Sends what OpenSSL has written. `keep`: bytes at its end that stay for later.
static void flush_some(struct peer *peer, size_t keep) {
    while (BIO_ctrl_pending(peer->out) > keep) {
        size_t left = BIO_ctrl_pending(peer->out) - keep;
        char bytes[4096];
        size_t len = peer->chops ? 1 + pick(60) : sizeof bytes;
        if (len > left) len = left;
        int read = BIO_read(peer->out, bytes, (int)len);
        for (int sent = 0; sent < read;) {
            ssize_t more = send(peer->socket, bytes + sent, read - sent, MSG_NOSIGNAL);
            if (more <= 0) return problem(peer, "cannot send");
            sent += (int)more;
        }
    }
}

// Waits for bytes; 0 at the end.
static int fill(struct peer *peer) {
    struct pollfd wait = { .fd = peer->socket, .events = POLLIN };
    if (poll(&wait, 1, PATIENCE_MS) != 1) {
        problem(peer, "time is up");
        return 0;
    }
    char bytes[16384];
    size_t len = peer->chops ? 1 + pick(700) : sizeof bytes;
    ssize_t got = recv(peer->socket, bytes, len, 0);
    if (got <= 0) return 0;
    BIO_write(peer->in, bytes, (int)got);
    return 1;
}

static int handshake(struct peer *peer) {
    for (;;) {
        int done = SSL_do_handshake(peer->ssl);
        flush_some(peer, 0);
        if (done == 1) return 1;
        if (SSL_get_error(peer->ssl, done) != SSL_ERROR_WANT_READ || !fill(peer)) {
            problem(peer, "no handshake");
            return 0;
        }
    }
}

// Reads what is there, or waits for it; 0 at the end.
static int read_more(struct peer *peer) {
    for (;;) {
        int read = SSL_read(peer->ssl, peer->text + peer->len, (int)(sizeof peer->text - 1 - peer->len));
        flush_some(peer, 0);
        if (read > 0) {
            peer->len += read;
            peer->text[peer->len] = 0;
            return 1;
        }
        int error = SSL_get_error(peer->ssl, read);
        if (error == SSL_ERROR_ZERO_RETURN) {
            peer->ended = 1;
            return 0;
        }
        if (error != SSL_ERROR_WANT_READ) {
            problem(peer, "a wrong record: %s", ERR_reason_error_string(ERR_peek_last_error()));
            return 0;
        }
        if (!fill(peer)) {
            peer->ended = 2;
            return 0;
        }
    }
}

// Waits for a text, and drops everything up to its end.
static int expect(struct peer *peer, const char *text) {
    for (;;) {
        char *at = strstr(peer->text, text);
        if (at) {
            size_t end = at - peer->text + strlen(text);
            memmove(peer->text, peer->text + end, peer->len - end + 1);
            peer->len -= end;
            return 1;
        }
        if (peer->len == sizeof peer->text - 1 || !read_more(peer)) {
            problem(peer, "%.40s has not come", text);
            return 0;
        }
    }
}

static void say(struct peer *peer, const char *text) {
    if (SSL_write(peer->ssl, text, (int)strlen(text)) <= 0) problem(peer, "cannot write");
    // Sometimes the end of a record comes only with what follows.
    flush_some(peer, pick(3) == 0 ? BIO_ctrl_pending(peer->out) / 2 : 0);
}

static void update_keys(struct peer *peer) {
    SSL_key_update(peer->ssl, pick(2) ? SSL_KEY_UPDATE_REQUESTED : SSL_KEY_UPDATE_NOT_REQUESTED);
    SSL_do_handshake(peer->ssl);
    flush_some(peer, pick(3) == 0 ? 3 : 0);
}

static void open_peer(struct peer *peer, SSL_CTX *context, int resumes) {
    static const char *suites[] = { "TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256" };
    connect_to(peer);
    peer->ssl = SSL_new(context);
    peer->in = BIO_new(BIO_s_mem());
    peer->out = BIO_new(BIO_s_mem());
    SSL_set_bio(peer->ssl, peer->in, peer->out);
    SSL_set_connect_state(peer->ssl);
    SSL_set_ciphersuites(peer->ssl, suites[pick(3)]);
    if (resumes && session) SSL_set_session(peer->ssl, session);
    peer->len = 0;
    *peer->text = *peer->problem = 0;
    peer->ended = 0;
}

static void close_peer(struct peer *peer) {
    SSL_free(peer->ssl);
    close(peer->socket);
}

static int on_session(SSL *ssl, SSL_SESSION *new) {
    (void)ssl;
    SSL_SESSION_free(session);
    session = new;
    return 1;
}

static struct peer publisher, reader;

// A request over the publisher's connection.
static void ask(const char *method, const char *body, int number) {
    char head[200];
    snprintf(head, sizeof head, "%s /pub?id=c%d HTTP/1.1\r\nHost: x\r\nContent-Length: %zu\r\n\r\n", method, number, strlen(body));
    if (SSL_write(publisher.ssl, head, (int)strlen(head)) <= 0) problem(&publisher, "cannot write");
    if (*body && SSL_write(publisher.ssl, body, (int)strlen(body)) <= 0) problem(&publisher, "cannot write");
    flush_some(&publisher, 0);
    expect(&publisher, "HTTP/1.1 200 OK\r\n");
    expect(&publisher, "\r\n\r\n");
}

// One reader from its handshake to its end.
static int follow(SSL_CTX *context, int number) {
    char request[100];
    reader.number = number;
    reader.chops = pick(2);
    open_peer(&reader, context, pick(2));
    if (!handshake(&reader)) return 0;
    if (pick(4) == 0) update_keys(&reader);
    snprintf(request, sizeof request, "GET /ev?id=c%d HTTP/1.1\r\nHost: x\r\n\r\n", number);
    if (SSL_write(reader.ssl, request, (int)strlen(request)) <= 0) problem(&reader, "cannot write");
    flush_some(&reader, 0);
    if (pick(4) == 0) update_keys(&reader);
    if (!expect(&reader, ": head\n")) return 0;
    for (int message = 0; message < MESSAGES; message++) {
        switch (pick(4)) {
            case 0: update_keys(&reader); break;
            case 1: say(&reader, "what nobody has asked for"); break;
            case 2: say(&reader, "GET / HTTP/1.1\r\n\r\n"); update_keys(&reader); break;
        }
        int len = pick(3) ? 1 + pick(300) : 1 + pick(LARGEST);
        int head = sprintf(wanted, "%d-%d-", number, message);
        for (int at = head; at < len + head; at++) wanted[at] = 'a' + pick(26);
        wanted[len + head] = 0;
        ask("POST", wanted, number);
        snprintf(got, LARGEST + 100, "data: %s\n\n", wanted);
        if (!expect(&reader, got)) return 0;
        flush_some(&reader, 0);
    }
    if (pick(2)) {
        ask("DELETE", "", number);
        if (!expect(&reader, "data: Channel deleted\n\n")) return 0;
    } else {
        SSL_shutdown(reader.ssl);
        flush_some(&reader, 0);
    }
    while (read_more(&reader)) {}
    if (reader.ended != 1) problem(&reader, "no close_notify at the end");
    return 1;
}

int main(int count, char **argument) {
    if (count != 4) return 2;
    port = atoi(argument[1]);
    int connections = atoi(argument[2]), wrong = 0;
    state = strtoull(argument[3], NULL, 10) * 0x9e3779b97f4a7c15ull + 1;
    wanted = malloc(LARGEST + 200);
    got = malloc(LARGEST + 200);
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_CLIENT);
    SSL_CTX_sess_set_new_cb(context, on_session);
    open_peer(&publisher, context, 0);
    if (!handshake(&publisher)) return 2;
    for (int number = 0; number < connections; number++) {
        follow(context, number);
        if (*reader.problem || *publisher.problem) {
            printf("connection %d (%s): %s%s\n", number, SSL_get_cipher(reader.ssl), reader.problem, publisher.problem);
            wrong++;
            if (*publisher.problem || wrong > 20) break;
        }
        ERR_clear_error();
        close_peer(&reader);
    }
    return wrong > 0;
}
