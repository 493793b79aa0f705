import threading

from promptmill.pipelines.work.turns import Turns


def test_one_thread_at_a_time_has_the_turn():
    turns, inside, most = Turns(), [0], []

    def work():
        for _ in range(300):
            with turns:
                inside[0] += 1
                most.append(inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(most) == 1200 and max(most) == 1


def test_a_thread_that_asks_again_and_again_lets_one_that_waits_come_next():
    turns, order, asked = Turns(), [], threading.Event()

    def wait():
        asked.set()
        with turns:
            order.append("other")

    with turns:
        other = threading.Thread(target=wait)
        other.start()
        asked.wait(10)
        while not turns._waiting:
            pass
    with turns:  # it is the other's turn first, however soon this thread comes back
        order.append("again")
    other.join(10)
    assert order == ["other", "again"]


def test_whoever_has_the_turn_may_take_it_inside_and_keeps_it_until_the_end():
    turns, came = Turns(), threading.Event()

    def wait():
        with turns:
            came.set()

    other = threading.Thread(target=wait)
    with turns:
        with turns:
            other.start()
        assert not came.wait(0.1)
    assert came.wait(10)
    other.join(10)


def test_an_error_inside_ends_the_turn():
    turns = Turns()
    try:
        with turns:
            raise KeyError
    except KeyError:
        pass
    taken = threading.Thread(target=lambda: turns.__enter__())
    taken.start()
    taken.join(10)
    assert not taken.is_alive()
