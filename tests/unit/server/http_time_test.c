/* http_time_test.c - what takes time: slow clients, late answers, streams, the end. */
#include "tests/unit/server/http_fixture.h"

/* ---- time ---- */

/* Seconds until the server ends the connection, while `byte` is sent every 300 ms (0: silence). */
static double seconds_until_cut(const char *head, const char *byte)
{
    int fd = dial(&daemon_);
    double start_time = gd_time_monotonic();
    shout(fd, head);
    for (;;) {
        struct pollfd ready = {.fd = fd, .events = POLLIN};
        char text[4096];
        if (poll(&ready, 1, 300) > 0 && recv(fd, text, sizeof(text), 0) <= 0)
            break;
        if (gd_time_monotonic() - start_time > 15)
            break;
        if (byte != NULL)
            say(fd, byte, strlen(byte));
    }
    close(fd);
    return gd_time_monotonic() - start_time;
}

static void slow_clients_are_cut_even_if_they_trickle(void **state)
{
    static const struct {
        const char *head, *byte;
    } cases[] = {
        {"", NULL},
        {"GET /hea", NULL},
        {"GET /health HTTP/1.1\r\n" H, "X: y\r\n"},
        {"POST /json HTTP/1.1\r\n" H "Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n{", " "},
        {"POST /json HTTP/1.1\r\n" H "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n1;", "x"},
        {"GET /health HTTP/1.1\r\n" H "\r\n", NULL},
    };
    for (size_t i = 0; i < GD_COUNT(cases); i++) {
        double seconds = seconds_until_cut(cases[i].head, cases[i].byte);
        if (seconds < 1.5 || seconds > 8)
            fail_msg("case %zu: cut after %.1f s", i, seconds);
    }
}

static void a_waiting_request_outlives_the_timeout(void **state)
{
    int fd = dial(&daemon_);
    shout(fd, "GET /never HTTP/1.1\r\n" H "\r\n");
    wait_for(&handled_count, 1);
    struct answer answer = listen_for(fd, 4000, false);
    assert_false(answer.closed);
    answer_release(&answer);
    close(fd);
    wait_for(&gone_count, 1);
}

static void replies_may_come_later_on_one_connection(void **state)
{
    int fd = dial(&daemon_);
    for (int i = 0; i < 3; i++) {
        shout(fd, "GET /later HTTP/1.1\r\n" H "\r\n");
        struct answer answer = listen_for(fd, 3000, false);
        assert_int_equal(answer.status, 200);
        answer_release(&answer);
    }
    close(fd);
}

static void requests_in_one_packet_are_answered_in_order(void **state)
{
    int fd = dial(&daemon_);
    static const char two[] = "GET /later HTTP/1.1\r\n" H "\r\nGET /item/2 HTTP/1.1\r\n" H "Connection: close\r\n\r\n";
    shout(fd, two);
    struct answer answer = {0};
    for (int i = 0; i < 30 && !answer.closed; i++) {
        answer_release(&answer);
        answer = listen_for(fd, 300, false);
        if (answer.text != NULL && strstr(answer.text, "\"id\":\"2\"") != NULL)
            break;
    }
    assert_non_null(strstr(answer.text, "\"id\":\"2\""));
    answer_release(&answer);
    close(fd);
}

/* ---- streams ---- */

static void streams_carry_events_in_the_format_of_the_standard(void **state)
{
    char text[512];
    struct answer answer = ask(&daemon_, "GET /stream?n=3 HTTP/1.1\r\n" H "\r\n");
    assert_int_equal(answer.status, 200);
    assert_string_equal(header_of(&answer, "content-type", text), "text/event-stream");
    assert_string_equal(header_of(&answer, "cache-control", text), "no-cache");
    assert_non_null(strstr(answer.body, "event: tick\nid: 1\ndata: tick\ndata: 1\n\n"));
    assert_non_null(strstr(answer.body, "event: tick\nid: 3\ndata: tick\ndata: 3\n\n"));
    answer_release(&answer);
}

static void a_stream_whose_client_leaves_is_told_once(void **state)
{
    for (int reset = 0; reset < 2; reset++) {
        atomic_store(&gone_count, 0);
        int fds[8];
        for (int i = 0; i < 8; i++) {
            fds[i] = dial(&daemon_);
            shout(fds[i], "POST /stream?n=100000&ms=1000 HTTP/1.1\r\n" H "\r\n");
            char text[64];
            assert_true(recv(fds[i], text, sizeof(text), 0) > 0);
        }
        for (int i = 0; i < 8; i++) {
            struct linger at_once = {1, 0};
            if (reset)
                setsockopt(fds[i], SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
            close(fds[i]);
        }
        wait_for(&gone_count, 8);
        pause_ms(50);
        assert_int_equal(atomic_load(&gone_count), 8);
    }
}

/* The queue's bound: 8 MiB wait for a client that does not read, then the stream is given up. */
static void a_client_that_stops_reading_is_let_go(void **state)
{
    int fd = dial(&daemon_);
    int small = 4096;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
    shout(fd, "POST /stream?n=100000&ms=0&bytes=1000000 HTTP/1.1\r\n" H "\r\n");
    wait_for(&gone_count, 1);
    close(fd);
}

static void a_large_stream_arrives_whole(void **state)
{
    struct answer answer = ask(&daemon_, "GET /stream?n=20&ms=0&bytes=200000 HTTP/1.1\r\n" H "\r\n");
    size_t count = 0;
    for (size_t i = 0; i < answer.body_length; i++)
        count += answer.body[i] == 'x';
    assert_true(count >= 20u * 200000u);
    answer_release(&answer);
}

static void waiting_requests_are_limited_and_health_still_answers(void **state)
{
    int fds[9];
    for (int i = 0; i < 8; i++) {
        fds[i] = dial(&daemon_);
        shout(fds[i], "GET /never HTTP/1.1\r\n" H "\r\n");
    }
    wait_for(&handled_count, 8);
    char text[512];
    struct answer answer = ask_json(&daemon_, "GET /never", "", NULL);
    assert_int_equal(answer.status, 429);
    assert_string_equal(header_of(&answer, "retry-after", text), "1");
    answer_release(&answer);
    assert_int_equal(status_of(ask_json(&daemon_, "GET /health", "", NULL)), 200);
    for (int i = 0; i < 8; i++)
        close(fds[i]);
    wait_for(&gone_count, 8);
    pause_ms(100);
    assert_int_equal(status_of(ask_json(&daemon_, "GET /later", "", NULL)), 200);
}

/* ---- the end ---- */

static void draining_waits_for_answers_and_ends_subscriptions(void **state)
{
    int slow = dial(&daemon_), subscription = dial(&daemon_), generation = dial(&daemon_), idle = dial(&daemon_);
    shout(subscription, "GET /stream?n=100000&ms=1000 HTTP/1.1\r\n" H "\r\n");
    shout(generation, "POST /stream?n=30&ms=10 HTTP/1.1\r\n" H "\r\n");
    shout(slow, "GET /later HTTP/1.1\r\n" H "\r\n");
    pause_ms(60);
    daemon_stop(&daemon_);
    assert_true(daemon_.drain_seconds < 1.9);
    struct answer answer = listen_for(slow, 1000, false);
    char text[512];
    assert_int_equal(answer.status, 200);
    assert_string_equal(header_of(&answer, "connection", text), "close");
    answer_release(&answer);
    answer = listen_for(generation, 1000, false);
    assert_non_null(strstr(answer.body, "id: 30\n"));
    answer_release(&answer);
    answer = listen_for(subscription, 1000, false);
    assert_int_equal(answer.status, 200);
    assert_non_null(strstr(answer.body, "\r\n0\r\n\r\n")); /* a clean end */
    answer_release(&answer);
    answer = listen_for(idle, 1000, false);
    assert_true(answer.closed);
    answer_release(&answer);
    int fds[] = {slow, subscription, generation, idle};
    for (size_t i = 0; i < GD_COUNT(fds); i++)
        close(fds[i]);
}

static void draining_gives_up_on_those_who_never_end(void **state)
{
    int waiting = dial(&daemon_), generation = dial(&daemon_), sending = dial(&daemon_);
    static const char half[] = "POST /json HTTP/1.1\r\n" H "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{";
    shout(waiting, "GET /never HTTP/1.1\r\n" H "\r\n");
    shout(generation, "POST /stream?n=100000&ms=10 HTTP/1.1\r\n" H "\r\n");
    shout(sending, half);
    wait_for(&handled_count, 1);
    pause_ms(100);
    daemon_.grace_ms = 300;
    daemon_stop(&daemon_);
    assert_true(daemon_.drain_seconds < 3);
    struct answer answer = listen_for(waiting, 1000, false);
    assert_int_equal(answer.status, 503);
    answer_release(&answer);
    answer = listen_for(generation, 1000, false);
    assert_int_equal(answer.status, 200);
    answer_release(&answer);
    assert_int_equal(atomic_load(&gone_count), 2);
    close(waiting);
    close(generation);
    close(sending);
}

static void health_answers_in_well_under_a_millisecond(void **state)
{
    static const char bytes[] = "GET /health HTTP/1.1\r\n" H "\r\n";
    int fd = dial(&daemon_);
    double times[500];
    for (size_t i = 0; i < GD_COUNT(times); i++) {
        double before = gd_time_monotonic();
        shout(fd, bytes);
        struct answer answer = listen_for(fd, 1000, false);
        times[i] = gd_time_monotonic() - before;
        assert_int_equal(answer.status, 200);
        answer_release(&answer);
    }
    close(fd);
    double best = times[0];
    for (size_t i = 1; i < GD_COUNT(times); i++)
        best = times[i] < best ? times[i] : best;
    print_message("best of %zu: %.0f us\n", GD_COUNT(times), best * 1e6);
    assert_true(best < 0.001);
}

int main(void)
{
#define CASE(name) cmocka_unit_test_setup_teardown(name, start_daemon, stop_daemon)
    const struct CMUnitTest tests[] = {
        CASE(slow_clients_are_cut_even_if_they_trickle),
        CASE(a_waiting_request_outlives_the_timeout),
        CASE(replies_may_come_later_on_one_connection),
        CASE(requests_in_one_packet_are_answered_in_order),
        CASE(streams_carry_events_in_the_format_of_the_standard),
        CASE(a_stream_whose_client_leaves_is_told_once),
        CASE(a_client_that_stops_reading_is_let_go),
        CASE(a_large_stream_arrives_whole),
        cmocka_unit_test_setup_teardown(waiting_requests_are_limited_and_health_still_answers, start_small, stop_daemon),
        cmocka_unit_test_setup(draining_waits_for_answers_and_ends_subscriptions, start_daemon),
        cmocka_unit_test_setup(draining_gives_up_on_those_who_never_end, start_daemon),
        CASE(health_answers_in_well_under_a_millisecond),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
