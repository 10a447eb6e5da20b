"""The worker: outbox -> sign -> one SQL transaction -> settle.

An RQ job only says that a shard has work; what to do is read from the outbox. Losing, repeating or delaying a job
delays settlement and nothing else; while the queue does not answer, the worker goes by what it sees. A lock keeps two
workers off one shard, and the store's compare-and-swap on every series' position holds where a lock has expired.
"""

from __future__ import annotations

import math
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import msgspec
import redis
import structlog
from redis.exceptions import LockError
from rq import Queue, SimpleWorker
from rq.exceptions import StopRequested
from rq.serializers import JSONSerializer

from seriatim import clients, keyspace, outbox, recovery, scripts, signing
from seriatim.config import Config
from seriatim.errors import Damaged, Halted, SeriatimError, Stale, Unavailable
from seriatim.model import COUNTER_MAX, Entry, Record, Series, Standing, follows, place_text
from seriatim.signing import Signer
from seriatim.signing_process import Chain, SigningProcess
from seriatim.store import Slice, Store

log = structlog.stdlib.get_logger(__name__)

QUEUE = "seriatim"
SLICE_RECORDS_MAX = 2000
LANES = 2
"""So many shards a worker has at hand at a time: while one waits for signatures or a disk, the other goes on."""
KNOWN_MAX = 1000
"""So many series of a shard are remembered from one turn to the next, as they were left."""
TURN_S = 5.0
"""After this time a worker lets other shards have their turn."""
GATHER_S = 0.1
"""So far apart a shard's slices begin that are not full: what each costs beside its records, and its sync to a disk
that Redis syncs to as well, is shared by more of them."""
LOCK_S = 5.0
"""How long a dead worker keeps its shard; a live one renews the lock after every slice."""
FINISH_S = 6.0
SWEEP_S = 1.0
QUEUE_S = 3, 5
"""How long the worker waits for a job, and for the queue's server to say that there is none; RQ waits for minutes."""
BACKOFF_S = (0.1, 5.0)
SWITCH_S = 0.0005
"""How long the thread that signs lets the one that commits wait between two statements."""


def queue(server: redis.Redis) -> Queue:
    """Returns the queue that wake-ups travel on. It may be on a server of its own, and that may lose everything."""
    return Queue(QUEUE, connection=server, serializer=JSONSerializer)


def wake(server: redis.Redis, shard: int) -> None:
    """Says that a shard has work. Best effort: the sweeper makes up for a wake-up that is lost."""
    job = f"{shard:03d}-{random.getrandbits(64):016x}"
    with scripts.translated():
        queue(server).enqueue("seriatim.worker.drain", shard, job_id=job, result_ttl=0, job_timeout=-1, failure_ttl=60)


class _Part(msgspec.Struct, frozen=True):
    """Records of one series, in order, that follow its last settled one, and what their receipts will say."""

    series: Series
    genesis: bytes
    records: Sequence[Record]
    payloads: list[bytes]

    def chain(self, head: str | None) -> Chain:
        """Returns what is to be signed behind `head`, the chain's last receipt; None when it has none."""
        return head or signing.digest(self.genesis), self.payloads

    def signed(self, receipts: Sequence[str]) -> Slice:
        """Returns it with its receipts."""
        pairs = zip(self.records, receipts, strict=True)
        records = [msgspec.structs.replace(record, receipt=receipt) for record, receipt in pairs]
        return Slice(self.series, self.genesis, records, _head(receipts))


class _Read(msgspec.Struct, frozen=True):
    """What is to be signed and committed, so that `waiting` can be dropped from the outbox of the shard."""

    standing: Standing
    shard: int
    waiting: outbox.Slice
    parts: list[_Part]

    @property
    def full(self) -> bool:
        """Whether there may be more in the shard."""
        return self.waiting.count >= SLICE_RECORDS_MAX


class Stopping:
    """Whether a worker is to stop.

    A signal's handler may say so: of an Event it would wait for ever for the lock of the wait that it interrupts.
    """

    def __init__(self) -> None:
        self._told: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        """Says that it is."""
        self._told.put(None)

    def clear(self) -> None:
        """Takes that back."""
        with suppress(Empty):
            while True:
                self._told.get_nowait()

    def is_set(self) -> bool:
        """Whether it is."""
        return not self._told.empty()

    def wait(self, seconds: float) -> bool:
        """Waits until it is, but no longer than this; returns whether it is."""
        with suppress(Empty):
            self._told.get(timeout=max(0.0, seconds))
            self._told.put(None)  # for the others
        return self.is_set()


class Drainer:
    """Moves records from the shards' outboxes to the store."""

    def __init__(self, client: redis.Redis, store: Store, signer: Signer, config: Config) -> None:
        self.client = client
        self._store = store
        self._signer = signer
        self._signing: SimpleQueue[SigningProcess] = SimpleQueue()
        for _ in range(LANES):
            self._signing.put(SigningProcess(signer))
        self._lanes = ThreadPoolExecutor(LANES)
        self._config = config
        self._standing: Standing | None = None
        self._left: dict[int, tuple[Standing, int, dict[str, Series]]] = {}
        """Under what, and up to which item, shards were settled when their last turn ended; and how it left series."""
        self._until = math.inf
        self._resting: dict[int, float] = {}
        """Until when shards gather records, see GATHER_S."""
        self.stopping = Stopping()

    def drain(self, shard: int) -> bool:
        """Settles a shard's records until there are none, for one turn; True when there is more to do.

        Returns without doing anything when another worker has the shard.
        """
        return self._drain(shard, self._signing.get())

    def begin(self, shard: int, then: Callable[[int], None]) -> None:
        """Drains a shard beside, as soon as a lane is free, and says by `then` when there is more to do."""
        self._lanes.submit(self._drain_beside, shard, self._signing.get(), then)

    def finish(self, shards: int) -> None:
        """Settles what can be settled in the time that a stop leaves. The rest waits for the next start."""
        # All of them are there when no lane is under way.
        for idle in [self._signing.get() for _ in range(LANES)]:
            self._signing.put(idle)
        self.stopping.clear()
        self._until = time.monotonic() + FINISH_S
        with suppress(Unavailable):
            for shard in range(shards):
                while time.monotonic() < self._until and self.drain(shard):
                    pass

    def _drain_beside(self, shard: int, signing: SigningProcess, then: Callable[[int], None]) -> None:
        try:
            if self._drain(shard, signing) and not self.stopping.is_set():
                then(shard)
        except SeriatimError as error:
            log.error("cannot settle", shard=shard, reason=error.message)
        except Exception:
            log.exception("cannot settle", shard=shard)

    def _drain(self, shard: int, signing: SigningProcess) -> bool:
        lock = self.client.lock(f"{keyspace.shard_key(shard)}:lock", timeout=LOCK_S, blocking=False)
        try:
            with scripts.translated():
                if not lock.acquire():
                    return False
            try:
                return self._insist(shard, lock, signing)
            finally:
                with suppress(LockError, *scripts.FAULTS):  # it has expired, as it may
                    lock.release()
        finally:
            self._signing.put(signing)

    def _insist(self, shard: int, lock: Any, signing: SigningProcess) -> bool:
        pause_s = BACKOFF_S[0]
        until = min(time.monotonic() + TURN_S, self._until)
        while time.monotonic() < until and not self.stopping.is_set():
            remembering = shard in self._left
            try:
                return self._pipeline(shard, lock, signing, until)
            except LockError:
                return True
            except Stale:
                if not remembering:  # else what was remembered may be, which is read anew first
                    self._standing = None
            except Damaged as damage:
                recovery.halt(self.client, self._store, damage.message, "worker")
                raise
            except Halted:
                self._standing = None
                raise
            except Unavailable as error:
                log.warning("cannot settle, trying again", shard=shard, reason=error.message, pause_s=pause_s)
                self.stopping.wait(pause_s * random.uniform(0.5, 1.0))  # noqa: S311
                pause_s = min(pause_s * 2, BACKOFF_S[1])
        return True

    def _pipeline(self, shard: int, lock: Any, signing: SigningProcess, until: float) -> bool:
        """Settles slice after slice: one is committed, the next signed, the one behind read. False: the shard is clean.

        `ahead` has the series as they will be: their places behind what was read, their heads behind what was signed.
        """
        behind, ahead = self._begin(shard)
        with ThreadPoolExecutor(1) as committer:
            committing: Future[None] | None = None
            while True:
                over = behind.waiting.count > 0 and self._is_over(until, behind)
                read = None if over else self._gather(behind, ahead)
                receipts = signing.receipts() if behind.parts else []
                for part, said in zip(behind.parts, receipts, strict=True):
                    ahead[part.series.id] = msgspec.structs.replace(ahead[part.series.id], head=_head(said))
                if read:
                    signing.begin([part.chain(ahead[part.series.id].head) for part in read.parts])
                if committing is not None:
                    committing.result()
                    lock.reacquire()
                if behind.waiting.count:
                    committing = committer.submit(self._settle, behind, receipts)
                if read is None:
                    if committing is not None:
                        committing.result()
                    self._end(behind, ahead)
                    return over
                behind = read

    def _is_over(self, until: float, behind: _Read) -> bool:
        """Whether other shards have their turn now; at the latest when all is read that was due in this one."""
        return time.monotonic() >= until or self.stopping.is_set() or (not behind.full and _is_more_due(behind.shard))

    def _begin(self, shard: int) -> tuple[_Read, dict[str, Series]]:
        """Begins a turn: behind what is settled, with the series that nobody else can have moved since the last one."""
        standing, settled = self._meet(), scripts.settled(self.client, shard)
        under, upto, left = self._left.pop(shard, (standing, settled, {}))
        nothing = _Read(standing, shard, outbox.Slice(settled, settled, 0, {}), [])
        return nothing, left if (under, upto) == (standing, settled) else {}

    def _end(self, behind: _Read, ahead: dict[str, Series]) -> None:
        if len(ahead) <= KNOWN_MAX:
            self._left[behind.shard] = behind.standing, behind.waiting.upto, ahead

    def _gather(self, behind: _Read, ahead: dict[str, Series]) -> _Read | None:
        """Reads the next slice as `_read`; if there is no more to do than that, not too soon."""
        if not behind.full:
            self.stopping.wait(self._resting.get(behind.shard, -math.inf) - time.monotonic())
        self._resting[behind.shard] = time.monotonic() + GATHER_S
        return self._read(behind, ahead)

    def _read(self, behind: _Read, ahead: dict[str, Series]) -> _Read | None:
        """Reads the slice next to `behind`, and moves `ahead` to where the series will be when it is settled.

        None when the shard is clean.
        """
        # Read the outbox first: what another worker settles meanwhile is then not taken for a gap.
        waiting = outbox.read(self.client, behind.shard, behind.waiting.upto, SLICE_RECORDS_MAX)
        if not waiting.count:
            return None
        new = [name for name in waiting.records if name not in ahead]
        if new:
            ahead |= self._store.series_by_ids(new)
        read = _Read(behind.standing, behind.shard, waiting, [])
        for name, records in waiting.records.items():
            if name not in ahead:
                raise Damaged(f"Redis holds records of series {name}, which the store does not know.")
            if name not in new and not follows(ahead[name].place, records[0].place):
                raise Stale  # another worker has gone on from there
            fresh = self._fresh(ahead[name], records)
            if fresh:
                part = self._part(ahead[name], fresh)
                read.parts.append(part)
                position, k = fresh[-1].place
                ahead[name] = msgspec.structs.replace(ahead[name], genesis=part.genesis, position=position, k=k)
        return read

    def _settle(self, read: _Read, receipts: Sequence[Sequence[str]]) -> None:
        if read.parts:
            slices = [part.signed(said) for part, said in zip(read.parts, receipts, strict=True)]
            self._store.commit(read.standing, slices)
        upto, count = read.waiting.upto, read.waiting.count
        scripts.settle(self.client, read.standing, read.shard, after=read.waiting.after, upto=upto, count=count)

    def _meet(self) -> Standing:
        standing = self._standing  # which the other lane may forget at any moment
        if standing is None:
            standing = self._standing = recovery.meet(self.client, self._store, self._config.ack)
        return standing

    def _fresh(self, series: Series, records: Sequence[Record]) -> list[Record]:
        """Returns the records that the store lacks, having compared those that it has."""
        stored = [record for record in records if record.place <= series.place]
        fresh = [record for record in records if record.place > series.place]
        if stored:
            position, k = stored[0].place
            before = (position, k - 1) if k else (position - 1, COUNTER_MAX)
            held = self._store.records_after(series, before, len(stored))
            if [_unsettled(record) for record in held] != stored:
                raise Damaged(f"Redis and the store hold different records of series {series.id}.")
        place = series.place
        for record in fresh:
            if not follows(place, record.place):
                goes_on, ends = place_text(record.place), place_text(place)
                raise Damaged(f"The outbox of series {series.id} goes on at {goes_on}, the store ends at {ends}.")
            place = record.place
        return fresh

    def _part(self, series: Series, fresh: Sequence[Record]) -> _Part:
        return _Part(series, series.genesis or signing.genesis(series), fresh, list(map(self._signer.payload, fresh)))


def _head(receipts: Sequence[str]) -> str:
    return signing.digest(receipts[-1].encode())


def _unsettled(record: Record) -> Record:
    """A record as the outbox has it."""
    if isinstance(record, Entry):
        return msgspec.structs.replace(record, receipt=None, settled_at=None, void=None)
    return msgspec.structs.replace(record, receipt=None, settled_at=None)


class _Worker(SimpleWorker):
    max_connection_wait_time = 2
    dequeue_timeout, connection_timeout = QUEUE_S

    def request_stop(self, signum: int, frame: Any) -> None:
        """Lets the drainer finish the slice at hand."""
        assert _drainer is not None
        _drainer.stopping.set()
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call]

    def register_birth(self) -> None:
        """Registers itself, also where it has done so before: nobody else has its name."""
        self.connection.delete(self.key)
        with suppress(ValueError):  # the other thread has just done so; had it done less, the next sweep sees to it
            super().register_birth()  # type: ignore[no-untyped-call]

    def register(self) -> None:
        """Registers itself anew where the queue's server has lost everything."""
        with scripts.translated():
            if not self.connection.hexists(self.key, "birth"):
                self.register_birth()


_drainer: Drainer | None = None
_queue: redis.Redis | None = None


def _is_more_due(shard: int) -> bool:
    """Whether a job waits for another shard. This one may have a job, too: it was clean for a moment."""
    with suppress(*scripts.FAULTS):
        return _queue is None or any(not job.startswith(f"{shard:03d}-") for job in queue(_queue).get_job_ids())
    return True


def drain(shard: int) -> None:
    """The RQ job: has a shard's records settled beside, and leaves the rest to a new job."""
    assert _drainer is not None, "only `seriatim worker` runs these jobs"
    _drainer.begin(shard, _wake_again)


def _wake_again(shard: int) -> None:
    assert _queue is not None
    with suppress(Unavailable):
        wake(_queue, shard)


def sweep(client: redis.Redis, server: redis.Redis, shards: int) -> None:
    """Wakes every dirty shard that nobody works on and no job waits for; drains them where nobody can be woken."""
    idle = _idle(client, shards)
    try:
        with scripts.translated():
            waiting = {job[:3] for job in queue(server).get_job_ids()}
        for shard in idle:
            if f"{shard:03d}" not in waiting:
                wake(server, shard)
    except Unavailable as error:
        log.warning("cannot wake a worker", reason=error.message)
        for shard in idle:
            drain(shard)


def _idle(client: redis.Redis, shards: int) -> list[int]:
    """Returns the dirty shards that nobody works on.

    Where Redis' clock was set back, the lock of a dead worker would last as long: none is made for more than LOCK_S.
    """
    pipeline = client.pipeline(transaction=False)
    for shard in range(shards):
        pipeline.xlen(keyspace.outbox_key(shard))
        pipeline.pttl(f"{keyspace.shard_key(shard)}:lock")
    with scripts.translated():
        replies = pipeline.execute()
        left_ms = replies[1::2]
        for shard in range(shards):
            if left_ms[shard] > LOCK_S * 1000:
                client.delete(f"{keyspace.shard_key(shard)}:lock")
    return [shard for shard in range(shards) if replies[2 * shard] and not 0 <= left_ms[shard] <= LOCK_S * 1000]


def _sweep_for_ever(client: redis.Redis, worker: _Worker, shards: int, stopping: Stopping) -> None:
    while not stopping.wait(SWEEP_S):
        try:
            sweep(client, worker.connection, shards)
            worker.register()
        except Unavailable as error:
            log.warning("cannot sweep", reason=error.message)
        except Exception:  # without sweeps, a record whose wake-up was lost would wait for the next one
            log.exception("a sweep failed")


def run(config: Config) -> None:
    """Works until SIGTERM, then settles what it can in some seconds.

    Raises:
        ConfigError: the signing key or a URL is wrong.
    """
    global _drainer, _queue  # noqa: PLW0603 -- RQ calls functions by their name, and this is where it finds them
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until RQ has its handlers
    store = Store(config.store_url)
    client = clients.blocking(config.redis_url, 30)
    _queue = clients.blocking(config.queue_url or config.redis_url, QUEUE_S[1])
    path = Path(config.signing_key)
    signing.create_key(path)
    signer = Signer(path, config.issuer)
    store.add_signing_key(signer.kid, signer.public_jwk)
    _drainer = Drainer(client, store, signer, config)
    shards = store.data_set().shards
    sys.setswitchinterval(SWITCH_S)
    worker = _Worker([queue(_queue)], connection=_queue, serializer=JSONSerializer, log_job_description=False)
    threading.Thread(target=_sweep_for_ever, args=(client, worker, shards, _drainer.stopping), daemon=True).start()
    with suppress(StopRequested):
        while not _drainer.stopping.is_set():
            try:
                worker.work(logging_level="WARNING")  # it ends, too, when it cannot say how a job went
            except scripts.FAULTS as error:
                log.warning("the queue does not answer", reason=str(error))
            _drainer.stopping.wait(SWEEP_S)
    _drainer.finish(shards)
