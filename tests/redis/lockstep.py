#!/usr/bin/env python3
"""Random commands to a real Redis and to a gateway of KvDB, in lockstep: every answer must be the same.

    lockstep.py --redis PORT --kvdb PORT [--seed N] [--commands N]

Both servers are emptied again and again. A round is made of its seed alone, so `--seed N --commands 1` repeats it. A round
that differs is shortened to a few commands before it is told. What docs/redis.md says is different isn't sent, or is
named in `allowed` below with the words of that page.
"""

import argparse
import random
import socket
import sys
import time

STEPS = 60
TAG = b"{t}"
KEYS = [TAG + name for name in (b"a", b"b", b"c", b"d", b"e", b"f", b"long-name", b"\x00\xff\r\n")]
# A HyperLogLog that Redis writes to while it counts.
COUNTED = TAG + b"counted"
EXPIRY = {b"TTL": 2, b"EXPIRETIME": 2, b"PTTL": 5000, b"PEXPIRETIME": 5000}
EDGES = [
    b"0", b"1", b"-1", b"2", b"10", b"100", b"-100", b"127", b"128", b"-129", b"255", b"32768", b"-32769", b"2147483647",
    b"2147483648", b"9223372036854775807", b"-9223372036854775808", b"9223372036854775806",
]
BAD_NUMBERS = [
    b"", b" 1", b"1 ", b"01", b"+1", b"-0", b"1.0", b"1e3", b"abc", b"0x10", b"9223372036854775808",
    b"-9223372036854775809", b"18446744073709551616", b"\x00", b"1\x00",
]
# Never a lifetime that ends while the comparison runs.
BAD_TIMES = [b"0", b"-1", b"-1000", b"abc", b"", b"9223372036854775807", b"9223372036854775", b"-9223372036854775808", b"1.5"]
JUNK = [b"NX", b"XX", b"GET", b"abc", b"-1", b"0", b"x" * 50, b"\xff\xfe", b"KEEPTTL", b"nan", b"BIT", b"GT"]
FLOATS = [
    b"0", b"1", b"-1", b"0.1", b"3.14159", b"1e5", b"1e-5", b"1e-05", b"-2.5e3", b"9007199254740993", b"1e18", b"0x1.8p3", b"0X10",
    b"1e20", b"123456789012345678901234567890", b"1e-17", b"5e-18", b"1e-18", b"1e300", b"1e4932", b"1e-4940", b"inf", b"-inf",
    b"INFINITY", b"nan", b"1e4933", b"1e-5000", b".5", b"5.", b"+1.5", b"-0", b"1e", b"0x", b"abc", b"", b" 1", b"1 ", b"17179869184.5",
    b"0.00000000000000001", b"99999999999999999.9", b"1e+3", b"--1", b"1_0", b"infinit", b"0x1p-3", b"0.30000000000000004",
]

# Commands of Redis 7.4 and 8.0.
LATER = {
    b"hexpire", b"hexpireat", b"hexpiretime", b"hgetdel", b"hgetex", b"hpersist", b"hpexpire", b"hpexpireat", b"hpexpiretime", b"hpttl",
    b"hsetex", b"httl",
}
# Commands that take more than those of Redis 7.0.
AHEAD = [b"zrank", b"zrevrank"]
SCORES = [
    b"0.1", b"-0", b"1e5", b"1.5", b"-2.5", b"inf", b"-inf", b"+inf", b"1e-5", b"0x1p3", b"3.0000000000000004", b"1e17", b"1e300", b"-1e300",
    b"9007199254740993", b"0.30000000000000004", b"1e-310", b"123456789.123456789", b"5.", b".5",
]
BAD_SCORES = [b"nan", b"abc", b"", b" 1", b"1 ", b"1e400", b"1e-400", b"0x", b"1e", b"--1", b"(1", b"1\x00"]


# The forms in which Redis dumps collections, each with the plain one of its type.
PLAIN = {18: 1, 2: 2, 11: 2, 4: 4, 16: 4, 5: 5, 17: 5}
# How all that a key holds is read.
WHOLE = {
    b"string": [b"GET"], b"list": [b"LRANGE", b"0", b"-1"], b"hash": [b"HGETALL"], b"set": [b"SMEMBERS"],
    b"zset": [b"ZRANGE", b"0", b"-1", b"WITHSCORES"],
}


class Gone(Exception):
    """A server has closed the connection."""


class Client:
    """Answers as they are on the wire: a mark for the type, then the content."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = self.socket.makefile("rb", 1 << 16)

    def close(self):
        self.stream.close()
        self.socket.close()

    def send(self, commands):
        out = []
        for words in commands:
            out.append(b"*%d\r\n" % len(words))
            out.extend(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
        self.socket.sendall(b"".join(out))

    def line(self):
        line = self.stream.readline()
        if not line.endswith(b"\r\n"):
            raise Gone
        return line[:-2]

    def answer(self):
        line = self.line()
        mark, rest = chr(line[0]), line[1:]
        if mark in "+-,#(":
            return (mark, rest)
        if mark == ":":
            return (mark, int(rest))
        if mark == "_" or rest == b"-1":
            return (mark, None)
        size = int(rest)
        if mark in "$=":
            content = self.stream.read(size + 2)[:-2]
            return (mark, content)
        if mark in "*~>":
            return (mark, [self.answer() for _ in range(size)])
        if mark == "%":
            return (mark, [(self.answer(), self.answer()) for _ in range(size)])
        raise ValueError(line)

    def ask(self, *words):
        self.send([words])
        return self.answer()


class Maker:
    """Makes steps: pipelines of commands, each on one of two connections."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def pick(self, *choices):
        return self.random.choice(choices)

    def chance(self, share):
        return self.random.random() < share

    def key(self):
        return self.random.choice(KEYS[:3] if self.chance(0.7) else KEYS)

    def hash_key(self):
        """Mostly one that holds a hash."""
        return self.key() if self.chance(0.15) else TAG + self.pick(b"h1", b"h2")

    def set_key(self):
        """Mostly one that holds a set."""
        return self.key() if self.chance(0.1) else TAG + self.pick(b"s1", b"s2", b"s3")

    def member(self):
        if self.chance(0.5):
            return b"%d" % self.random.randrange(12)
        return self.pick(b"m1", b"m2", b"", b"\x00\xff", b"01", b"-5", b"9223372036854775807", b"9223372036854775808", b"a-longer-member-name")

    def sorted_key(self):
        """Mostly one that holds a sorted set; now and then a set, which may take part too."""
        return self.set_key() if self.chance(0.1) else TAG + self.pick(b"z1", b"z1", b"z2", b"z3")

    def score(self):
        if self.chance(0.06):
            return self.random.choice(BAD_SCORES)
        return self.pick(b"%d" % self.random.randrange(-3, 9), b"%d" % self.random.randrange(-3, 9), self.random.choice(SCORES))

    def sorted_member(self):
        return self.pick(b"%d" % self.random.randrange(20), b"m1", b"m2", b"", b"\x00\xff", b"a-longer-member-name")

    def bounds(self, kind):
        """Ends of a range by rank, score or name."""
        if self.chance(0.04):
            return [self.pick(b"x", b"", b"(", b"["), self.number()]
        if kind == b"RANK":
            return [b"%d" % self.random.randrange(-12, 12) for _ in range(2)]
        if kind == b"BYSCORE":
            return [self.pick(b"", b"", b"(") + self.pick(self.score(), b"-inf", b"+inf", b"0", b"3") for _ in range(2)]
        return [self.pick(b"-", b"+", b"[" + self.sorted_member(), b"(" + self.sorted_member(), b"x" if self.chance(0.1) else b"-") for _ in range(2)]

    def same_scores(self):
        """A key whose members have one score: names are a range among those alone."""
        return TAG + b"zl"

    def limit(self):
        return [b"LIMIT", self.pick(b"0", b"0", b"1", b"3", b"-1", b"x"), self.pick(b"1", b"2", b"5", b"-1", b"0", b"x")]

    def ranged(self):
        """A range of a sorted set, by all ways of asking for it."""
        kind = self.pick(b"RANK", b"BYSCORE", b"BYLEX")
        key = self.same_scores() if kind == b"BYLEX" else self.sorted_key()
        more = self.options(b"WITHSCORES", Maker.limit, b"REV", b"bad" if self.chance(0.1) else b"withscores", most=2)
        if self.chance(0.5):
            by = [] if kind == b"RANK" else [self.pick(kind, kind.lower())]
            words = [b"ZRANGE", key] + self.bounds(kind) + by + more
            return words if self.chance(0.8) else [b"ZRANGESTORE", TAG + self.pick(b"z2", b"z3")] + words[1:]
        names = {b"RANK": [b"ZRANGE", b"ZREVRANGE"], b"BYSCORE": [b"ZRANGEBYSCORE", b"ZREVRANGEBYSCORE"], b"BYLEX": [b"ZRANGEBYLEX", b"ZREVRANGEBYLEX"]}
        return [self.random.choice(names[kind]), key] + self.bounds(kind) + more

    def counted(self):
        kind = self.pick(b"RANK", b"BYSCORE", b"BYSCORE", b"BYLEX")
        key = self.same_scores() if kind == b"BYLEX" else self.sorted_key()
        names = {b"RANK": [b"ZREMRANGEBYRANK"], b"BYSCORE": [b"ZCOUNT", b"ZCOUNT", b"ZREMRANGEBYSCORE"], b"BYLEX": [b"ZLEXCOUNT", b"ZLEXCOUNT", b"ZREMRANGEBYLEX"]}
        return [self.random.choice(names[kind]), key] + self.bounds(kind)

    def combined(self):
        sources = [self.sorted_key() for _ in range(self.random.randrange(1, 4))]
        count = b"%d" % len(sources) if self.chance(0.93) else self.pick(b"0", b"-1", b"x", b"4", b"9223372036854775807")
        name = self.pick(b"ZUNION", b"ZINTER", b"ZDIFF", b"ZUNIONSTORE", b"ZINTERSTORE", b"ZDIFFSTORE", b"ZINTERCARD")
        if name == b"ZINTERCARD":
            return [name, count] + sources + self.options(lambda self: [b"LIMIT", self.pick(b"0", b"1", b"2", b"-1", b"x")], b"bad", most=1)
        target = [TAG + self.pick(b"z1", b"z3")] if name.endswith(b"STORE") else []

        def weights(self):
            return [self.pick(b"WEIGHTS", b"weights")] + [self.score() for _ in sources]

        def aggregate(self):
            return [b"AGGREGATE", self.pick(b"SUM", b"MIN", b"MAX", b"max", b"x" if self.chance(0.2) else b"SUM")]

        return [name] + target + [count] + sources + self.options(weights, aggregate, b"WITHSCORES", b"bad" if self.chance(0.1) else b"withscores", most=2)

    def place(self):
        return self.pick(b"p1", b"p2", b"p3", b"Palermo", b"\x00\xff", b"%d" % self.random.randrange(15))

    def degrees(self):
        if self.chance(0.04):
            return [self.pick(b"181", b"x", b"-200.5", b"nan", b"inf"), self.pick(b"0", b"85.06", b"x")]
        if self.chance(0.6):
            return [b"%.*f" % (self.pick(0, 2, 6), self.random.uniform(-3, 3)), b"%.*f" % (self.pick(0, 2, 6), self.random.uniform(-3, 3))]
        return [b"%.5f" % self.random.uniform(-179.9, 179.9), b"%.5f" % self.random.uniform(-85, 85)]

    def unit(self):
        return self.pick(b"m", b"km", b"KM", b"ft", b"mi", b"cm" if self.chance(0.1) else b"km")

    def distance(self):
        if self.chance(0.05):
            return self.pick(b"-1", b"x", b"nan", b"1e300", b"0")
        return self.pick(b"%d" % self.random.randrange(2000), b"%.3f" % self.random.uniform(0, 400), b"100000")

    def geo_options(self, stores):
        more = [b"ASC", b"DESC", b"asc", lambda self: [b"COUNT", self.pick(b"1", b"3", b"100", b"0" if self.chance(0.2) else b"2", b"x" if self.chance(0.2) else b"5")]]
        if not stores or self.chance(0.1):
            more += [b"WITHDIST", b"WITHHASH", b"WITHCOORD", b"bad" if self.chance(0.1) else b"withdist"]
        return self.options(*more, most=4)

    def geo(self):
        g = TAG + self.pick(b"g1", b"g1", b"g2") if self.chance(0.95) else self.sorted_key()
        kind = self.random.randrange(12)
        if kind < 4:
            places = [word for _ in range(self.random.choice([1, 2, 3, 8])) for word in self.degrees() + [self.place()]]
            return [b"GEOADD", g] + self.options(b"NX", b"XX", b"CH", most=2) + places
        if kind == 4:
            return [b"GEODIST", g, self.place(), self.place()] + self.options(self.unit(), most=1)
        if kind == 5:
            return [self.pick(b"GEOPOS", b"GEOHASH"), g] + [self.place() for _ in range(self.random.randrange(1, 4))]
        stores = self.chance(0.3)
        if kind < 8:
            target = [self.pick(b"STORE", b"STOREDIST"), TAG + self.pick(b"g2", b"z3")] if stores else []
            if self.chance(0.5):
                return [b"GEORADIUS", g] + self.degrees() + [self.distance(), self.unit()] + self.geo_options(stores) + target
            return [b"GEORADIUSBYMEMBER", g, self.place(), self.distance(), self.unit()] + self.geo_options(stores) + target
        if kind == 8:
            return [b"GEORADIUS_RO", g] + self.degrees() + [self.distance(), self.unit()] + self.geo_options(False)
        words = [b"GEOSEARCHSTORE", TAG + self.pick(b"g2", b"z3"), g] if stores else [b"GEOSEARCH", g]
        words += self.pick([b"FROMMEMBER", self.place()], [b"FROMLONLAT"] + self.degrees())
        words += self.pick([b"BYRADIUS", self.distance(), self.unit()], [b"BYBOX", self.distance(), self.distance(), self.unit()])
        return words + (self.options(b"STOREDIST", most=1) if stores else []) + self.geo_options(stores)

    def sorted_add(self):
        if self.chance(0.06):
            return [b"ZADD", self.sorted_key()] + [word for number in range(self.pick(60, 130, 150)) for word in (b"%d" % (number % 50), b"%d" % number)]
        if self.chance(0.15):
            return [b"ZADD", self.same_scores()] + [word for _ in range(self.random.randrange(1, 6)) for word in (b"0", self.sorted_member())]
        options = self.options(b"NX", b"XX", b"GT", b"LT", b"CH", b"INCR" if self.chance(0.4) else b"ch", most=2)
        pairs = [word for _ in range(self.random.choice([1, 1, 2, 3, 5])) for word in (self.score(), self.sorted_member())]
        return [self.pick(b"ZADD", b"ZADD", b"zadd"), self.sorted_key()] + options + pairs

    def count(self):
        """Of what is chosen at random."""
        return self.pick(b"0", b"1", b"2", b"-1", b"-3", b"100000", b"100000", b"x", b"", b"9223372036854775807", b"-9223372036854775808")
    def list_key(self):
        """Mostly one that holds a list."""
        return self.key() if self.chance(0.1) else TAG + self.pick(b"l1", b"l2", b"l3")

    def side(self):
        return self.pick(b"LEFT", b"RIGHT", b"left", b"Right") if self.chance(0.97) else b"up"

    def index(self):
        return self.number() if self.chance(0.2) else b"%d" % self.random.randint(-12, 12)

    def sketch_key(self):
        """Mostly one that holds a HyperLogLog."""
        return self.key() if self.chance(0.08) else TAG + self.pick(b"u1", b"u1", b"u2", b"u3")

    def sketched(self):
        """Elements to be counted: a few, or so many that the value becomes dense."""
        many = self.pick(0, 1, 2, 3, 8, 40) if self.chance(0.85) else self.pick(300, 900, 2500)
        return [b"%d" % self.random.randrange(20 if many < 9 else 100_000) for _ in range(many)]

    def runs(self, is_damaged):
        """A sparse value as no server makes it: runs that could be fewer, or that don't come to 16,384."""
        left, body = 16384, b""
        while left:
            kind, most = self.random.randrange(3), min(left, self.pick(1, 4, 64, 16384))
            count = self.random.randrange(most) + 1
            if kind == 0:
                count = min(count, 64)
                body += bytes([count - 1])
            elif kind == 1:
                body += bytes([0x40 | (count - 1) >> 8, (count - 1) & 255])
            else:
                count = min(count, 4)
                body += bytes([0x80 | self.random.choice([0, 0, 0, 1, 31]) << 2 | count - 1])
            left -= count
            if len(body) > 3200:
                body, left = body + bytes([0x40 | (left - 1) >> 8, (left - 1) & 255]) if left else body, 0
        if is_damaged:
            body = self.pick(body + b"\x00", body + b"\x80", body + b"\x40\x00", b"\x7f\xfe", b"\x7f\xfe\x81", b"")
        return b"HYLL\x01\x00\x00\x00" + self.pick(bytes(7) + b"\x80", bytes(7) + b"\x80", bytes([9]) + bytes(7)) + body

    def hyperloglog(self):
        u = self.sketch_key
        kind = self.random.randrange(13)
        if self.chance(0.15):
            return self.pick([b"PFADD", COUNTED] + self.sketched(), [b"PFCOUNT", COUNTED], [b"GET", COUNTED], [b"PFMERGE", u(), COUNTED], [b"DEL", COUNTED])
        if kind < 5:
            return [self.pick(b"PFADD", b"PFADD", b"pfadd"), u()] + self.sketched()
        if kind < 8:
            return [b"PFCOUNT"] + self.few(u, 5)
        if kind < 10:
            return [b"PFMERGE"] + self.few(u, 5)
        if kind == 10:
            return [b"SET", u(), self.runs(False)]
        if kind == 11:
            # Redis finds the damage when it counts; here what adds finds it too.
            damaged = TAG + b"damaged"
            return self.pick([b"SET", damaged, self.runs(True)], [b"PFCOUNT", damaged], [b"PFCOUNT", u(), damaged], [b"PFMERGE", u(), damaged])
        return [self.pick(b"GET", b"GET", b"STRLEN", b"DUMP", b"DEL", b"TYPE", b"PERSIST", b"TTL"), u()]

    def few(self, make, most=4):
        return [make() for _ in range(self.random.randrange(1, most))]

    def field(self):
        return self.pick(b"f1", b"f2", b"f3", b"", b"\x00\xff", b"a-longer-field-name", b"%d" % self.random.randrange(30))

    def number(self):
        if self.chance(0.04):
            return self.random.choice(BAD_NUMBERS)
        if self.chance(0.3):
            return self.random.choice(EDGES)
        return b"%d" % self.random.randint(-20, 40)

    def value(self):
        kind = self.random.randrange(8)
        if kind == 0:
            return self.random.choice(EDGES)
        if kind == 1:
            return bytes(self.random.randrange(256) for _ in range(self.random.randrange(12)))
        if kind == 2:
            return self.random.choice(FLOATS)
        if kind == 3:
            return bytes(self.random.choice(b"ab") for _ in range(self.random.choice([20, 21, 44, 45, 64, 200, 700])))
        if kind == 4:
            return bytes([self.random.randrange(256)]) * self.random.choice([1, 30, 300, 3000])
        if kind == 5:
            return self.random.choice([b"\xff\xff\xff", b"\x00\x00", b"\xff\xf0\x00", b"\x00\xff\xf0", b"\xff" * 9])
        return self.pick(b"hello", b"world", b"x", b"", b"10", b"5.0e3", b"ohmytext", b"mynewtext")

    def seconds(self, millis=False):
        if self.chance(0.12):
            return self.random.choice(BAD_TIMES)
        return b"%d" % (self.random.randint(100_000, 90_000_000) * (1000 if millis else 1))

    def moment(self, millis=False):
        if self.chance(0.15):
            return self.random.choice(BAD_TIMES)
        return b"%d" % (self.random.randint(2_000_000_000, 3_000_000_000) * (1000 if millis else 1))

    def lifetime(self):
        word = self.pick(b"EX", b"PX", b"EXAT", b"PXAT", b"ex", b"Px")
        return [word, self.time_for(word.upper())]

    def time_for(self, word):
        if word.endswith(b"AT"):
            return self.moment(word.startswith(b"P"))
        return self.seconds(word.startswith(b"P"))

    def options(self, *choices, most=3):
        out = []
        for _ in range(self.random.choice([0, 0, 1, 1, 2, most])):
            option = self.random.choice(choices)
            out += option(self) if callable(option) else [option]
        return out

    def bit_kind(self):
        if self.chance(0.05):
            return self.pick(b"I8", b"U8", b"u64", b"i65", b"u0", b"i", b"x8", b"i08", b"", b"u-1")
        return self.pick(b"u", b"i") + b"%d" % self.pick(1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 32, 33, 62, 63)

    def bit_offset(self):
        if self.chance(0.05):
            return self.pick(b"-1", b"abc", b"", b"#", b"#-1", b"4294967296", b"99999999999", b"#x", b"01")
        return self.pick(b"", b"#") + b"%d" % self.random.choice([0, 0, 1, 3, 7, 8, 9, 15, 30, 64, 100])

    def bit_step(self):
        kind = self.random.randrange(9)
        if kind < 3:
            return [self.pick(b"GET", b"get"), self.bit_kind(), self.bit_offset()]
        if kind < 5:
            return [b"SET", self.bit_kind(), self.bit_offset(), self.number()]
        if kind < 7:
            return [b"INCRBY", self.bit_kind(), self.bit_offset(), self.number()]
        return [b"OVERFLOW", self.pick(b"WRAP", b"SAT", b"FAIL", b"sat", b"fail", b"nonsense" if self.chance(0.1) else b"SAT")]

    def places(self, most=3):
        out = [self.number() for _ in range(self.random.randrange(most + 1))]
        if len(out) == 2 and self.chance(0.5):
            out.append(self.pick(b"BIT", b"BYTE", b"bit", b"byte", b"BYTE", b"nonsense"))
        return out

    def pattern(self):
        pieces = [b"*", b"?", b"[a-c]", b"[^a]", b"\\{", b"{t}", b"a", b"[\x80-\xff]", b"[a-\xff]", b"[\xff-a]", b"[b-", b"\\", b"[]", b"*\r\n"]
        return self.pick(b"*", b"{t}*", b"".join(self.random.choice(pieces) for _ in range(self.random.randrange(1, 5))))

    def dump(self):
        good = [
            b"\x00\xc0\n\n\x00n\x9fWE\x0e\xaec\xbb",
            b"\x00\x01v\n\x00\x91\x08\xce\xb2\x198\x8a\xce",
            b"\x00\xc3\t@d\x01aa\xe0W\x00\x01aa\n\x00\xe8\xa3\xb5\x07\xb0m\xf2q",
            b"\x12\x03\x02\x0d\x0d\x00\x00\x00\x02\x00\x81a\x02\x81b\x02\xff\x02\x0c\x0c\x00\x00\x00\x02\x00\x81c\x02\x01\x01\xff\x02\x09\x09\x00\x00\x00\x01\x00\x02\x01\xff\x0a\x00\xde\x90\x00\xa3u\xbd\xb3H",
            b"\x12\x01\x02\xc3\x13@\xbb\x0b\xbb\x00\x00\x00\x1e\x00\x84same\x05\xe0\xa4\x05\x01\x05\xff\x0a\x00h\x1a6\x90\xa1J\x1aa",
            b"\x0b\x0e\x02\x00\x00\x00\x03\x00\x00\x00\xfe\xff\x01\x00,\x01\x0a\x00[\x0a\xa8b\xf7\x94`\x0a",
            b"\x02\x03\xc0\xf9\x01a\x01b\x0a\x00\x18\x12\xdfAnXXJ",
            b"\x10\x16\x16\x00\x00\x00\x06\x00\x81f\x02\x81v\x02\x81n\x02*\x01\x80\x01\x80\x01\xff\x0a\x00!j@d\x93\xe4\xc1\x87",
            b"\x0d\x17\x17\x00\x00\x00\x13\x00\x00\x00\x04\x00\x00\x01f\x03\x01v\x03\x01n\x03\xfe*\xff\x09\x00+r\x8a\xc9ecU#",
            b"\x05\x03\x01c\x00\x00\x00\x00\x00\x00\xf0\x7f\xc3\x09@F\x01aa\xe09\x00\x01aa\x00\x00\x00\x00\x00\x00\xf8?\x01b\x00\x00\x00\x00\x00\x00\x00\xc0\x0a\x00\x8dm\x03\xdf7;\xc9\x93",
            b"\x0c\x19\x19\x00\x00\x00\x16\x00\x00\x00\x04\x00\x00\x01a\x03\x04-1.5\x06\x01b\x03\xf4\xff\x09\x00\xc3\xfdJ\xeaZ>A\xde",
        ]
        dump = self.random.choice(good)
        if self.chance(0.3):
            place = self.random.randrange(len(dump))
            dump = dump[:place] + bytes([dump[place] ^ 1 << self.random.randrange(8)]) + dump[place + 1 :]
        return self.pick(dump, dump, dump, dump[:-1], b"junk", dump[:-8] + bytes(8))

    def command(self, inside):
        """A command; `inside` a transaction only those that may be there."""
        k, v, n, h, f, s, m = self.key, self.value, self.number, self.hash_key, self.field, self.set_key, self.member
        l, e, i = self.list_key, self.field, self.index
        z, w = self.sorted_key, self.sorted_member
        every = [
            lambda: [b"SET", k(), v()] + self.options(b"NX", b"XX", b"GET", b"KEEPTTL", Maker.lifetime, Maker.lifetime),
            lambda: [b"SET", k(), v()],
            lambda: [b"GET", k()],
            lambda: [b"GETEX", k()] + self.options(b"PERSIST", Maker.lifetime, Maker.lifetime, most=2),
            lambda: [b"GETDEL", k()],
            lambda: [b"GETSET", k(), v()],
            lambda: [b"SETNX", k(), v()],
            lambda: [b"SETEX", k(), self.seconds(), v()],
            lambda: [b"PSETEX", k(), self.seconds(True), v()],
            lambda: [b"APPEND", k(), v()],
            lambda: [b"STRLEN", k()],
            lambda: [self.pick(b"GETRANGE", b"SUBSTR"), k(), n(), n()],
            lambda: [b"SETRANGE", k(), self.pick(b"0", b"1", b"5", b"40", b"-1", b"abc", b"700000000"), v()],
            lambda: [self.pick(b"INCR", b"DECR"), k()],
            lambda: [self.pick(b"INCRBY", b"DECRBY"), k(), n()],
            lambda: [b"INCRBYFLOAT", k(), self.random.choice(FLOATS)],
            lambda: [b"INCRBYFLOAT", k(), b"%.*f" % (self.random.randrange(20), self.random.uniform(-1e6, 1e6))],
            lambda: [b"MGET"] + [k() for _ in range(self.random.randrange(1, 5))],
            lambda: [b"MSET"] + [word for _ in range(self.random.randrange(1, 4)) for word in (k(), v())],
            lambda: [b"LCS", k(), k()] + self.options(b"LEN", b"IDX", b"WITHMATCHLEN", lambda self: [b"MINMATCHLEN", self.number()]),
            lambda: [b"SETBIT", k(), self.pick(b"0", b"1", b"7", b"8", b"100", b"-1", b"4294967296", b"abc"), self.pick(b"0", b"1", b"1", b"2", b"")],
            lambda: [b"GETBIT", k(), self.pick(b"0", b"1", b"7", b"8", b"100", b"4294967295", b"-1", b"4294967296", b"abc")],
            lambda: [b"BITCOUNT", k()] + self.places(),
            lambda: [b"BITPOS", k(), self.pick(b"0", b"1", b"0", b"1", b"2", b"x")] + self.places(),
            lambda: [b"BITOP", self.pick(b"AND", b"OR", b"XOR", b"NOT", b"not", b"nonsense"), k()] + [k() for _ in range(self.random.randrange(1, 4))],
            lambda: [b"BITFIELD", k()] + [word for _ in range(self.random.randrange(5)) for word in self.bit_step()],
            lambda: [b"BITFIELD", k()] + [word for _ in range(self.random.randrange(1, 5)) for word in self.bit_step()],
            lambda: [b"BITFIELD_RO", k()] + [word for _ in range(self.random.randrange(3)) for word in self.bit_step()],
            lambda: [self.pick(b"DEL", b"UNLINK", b"EXISTS", b"TOUCH")] + [k() for _ in range(self.random.randrange(1, 4))],
            lambda: [b"EXPIRE", k(), self.seconds()] + self.options(b"NX", b"XX", b"GT", b"LT", b"gt", b"bad", most=2),
            lambda: [b"PEXPIRE", k(), self.seconds(True)] + self.options(b"NX", b"XX", b"GT", b"LT", most=2),
            lambda: [b"EXPIREAT", k(), self.moment()] + self.options(b"NX", b"XX", b"GT", b"LT", most=2),
            lambda: [b"PEXPIREAT", k(), self.moment(True)] + self.options(b"NX", b"XX", b"GT", b"LT", most=2),
            lambda: [self.random.choice(list(EXPIRY)), k()],
            lambda: [self.random.choice(list(EXPIRY)), k()],
            lambda: [b"PERSIST", k()],
            lambda: [b"TYPE", k()],
            lambda: [self.pick(b"RENAME", b"RENAMENX"), k(), k()],
            lambda: [b"COPY", k(), k()] + self.options(b"REPLACE", lambda self: [b"DB", self.pick(b"0", b"0", b"16", b"-1", b"x")], most=2),
            lambda: [b"DUMP", self.pick(k, l, h, s, z)()],
            lambda: [b"RESTORE", self.pick(k, l, h, s, z)(), self.pick(b"0", b"0", b"500000", b"-1", b"x"), self.dump()] + self.options(b"REPLACE", lambda self: [b"IDLETIME", self.number()], lambda self: [b"FREQ", self.number()], b"nonsense"),
            lambda: [b"RESTORE", k(), self.moment(True), self.dump(), b"ABSTTL"] + self.options(b"REPLACE"),
            lambda: [b"OBJECT", self.pick(b"IDLETIME", b"FREQ", b"nonsense"), k()],
            lambda: [self.pick(b"HSET", b"HSET", b"HMSET", b"hset"), h()] + [word for _ in range(self.random.randrange(1, 4)) for word in (f(), v())],
            lambda: [b"HSETNX", h(), f(), v()],
            lambda: [self.pick(b"HGET", b"HEXISTS", b"HSTRLEN"), h(), f()],
            lambda: [self.pick(b"HMGET", b"HDEL"), h()] + [f() for _ in range(self.random.randrange(1, 4))],
            lambda: [self.pick(b"HLEN", b"HGETALL", b"HKEYS", b"HVALS"), h()],
            lambda: [b"HINCRBY", h(), f(), n()],
            lambda: [b"HINCRBYFLOAT", h(), f(), self.random.choice(FLOATS)],
            lambda: [b"HSCAN", h(), self.pick(b"0", b"0", b"0", b"x", b""), b"COUNT", self.pick(b"100000", b"100000", b"0", b"x")] + self.options(lambda self: [b"MATCH", self.pick(b"*", b"f*", b"[a-g]?")], b"bad", most=1),
            lambda: [self.pick(b"LPUSH", b"RPUSH", b"LPUSHX", b"RPUSHX", b"rpush"), l()] + self.few(e, self.pick(4, 4, 4, 150)),
            lambda: [self.pick(b"LPOP", b"RPOP"), l()] + self.options(lambda self: [self.pick(b"0", b"1", b"2", b"-1", b"x", b"9223372036854775807")], most=1),
            lambda: [self.pick(b"LLEN", b"TYPE"), l()],
            lambda: [b"LINDEX", l(), i()],
            lambda: [self.pick(b"LRANGE", b"LRANGE", b"LTRIM"), l(), i(), i()],
            lambda: [b"LRANGE", l(), b"0", b"-1"],
            lambda: [b"LSET", l(), i(), e()],
            lambda: [b"LINSERT", l(), self.pick(b"BEFORE", b"AFTER", b"before", b"x"), e(), e()],
            lambda: [b"LREM", l(), self.pick(b"0", b"1", b"-1", b"2", b"-3", b"x"), e()],
            lambda: [b"LPOS", l(), e()] + self.options(lambda self: [b"RANK", self.pick(b"1", b"-1", b"2", b"0", b"x")], lambda self: [b"COUNT", self.pick(b"0", b"1", b"2", b"-1")], lambda self: [b"MAXLEN", self.pick(b"0", b"3", b"-1")], b"bad", most=3),
            lambda: [self.pick(b"SORT", b"SORT_RO"), self.pick(l, s)()] + self.options(b"ALPHA", b"ASC", b"DESC", lambda self: [b"LIMIT", i(), i()], lambda self: [b"BY", b"nosort"] if self.chance(0.3) else [], lambda self: [b"GET", b"#"], b"bad", most=4),
            lambda: [b"SORT", self.pick(l, s, k)(), b"ALPHA", b"STORE", l()],
            lambda: [b"LMOVE", l(), l(), self.side(), self.side()],
            lambda: [b"RPOPLPUSH", l(), l()],
            lambda: [b"LMPOP"] + self.pick(lambda: [b"2", l(), l()], lambda: [b"1", l()], lambda: [b"3", l(), l()], lambda: [b"0", l()])() + [self.side()] + self.options(lambda self: [b"COUNT", self.pick(b"1", b"2", b"20", b"0", b"x")], b"COUNT", most=1),
            lambda: [self.pick(b"DEL", b"TYPE", b"GET", b"EXPIRE", b"PERSIST", b"APPEND", b"STRLEN"), l()] + self.options(b"100000", most=1),
            lambda: [self.pick(b"COPY", b"RENAME", b"RENAMENX"), l(), l()],
            lambda: [self.pick(b"DEL", b"TYPE", b"GET", b"EXPIRE", b"PERSIST", b"APPEND", b"STRLEN"), h()] + self.options(b"100000", most=1),
            lambda: [b"HRANDFIELD", h()] + self.options(lambda self: [self.count()], lambda self: [self.count(), self.pick(b"WITHVALUES", b"withvalues", b"bad")], most=1),
            lambda: [b"SADD", s()] + [m() for _ in range(self.random.choice([1, 1, 2, 3, 6]))],
            lambda: [b"SADD", s()] + [m() for _ in range(self.random.choice([1, 1, 2, 3, 6]))],
            lambda: [b"SADD", s()] + [b"%d" % number for number in range(self.random.choice([5, 20, 120, 140, 500, 520]))] + self.options(b"x", most=1),
            lambda: [b"SREM", s()] + [m() for _ in range(self.random.randrange(1, 4))],
            lambda: [b"SISMEMBER", s(), m()],
            lambda: [b"SMISMEMBER", s()] + [m() for _ in range(self.random.randrange(1, 4))],
            lambda: [self.pick(b"SCARD", b"SMEMBERS", b"SMEMBERS"), s()],
            lambda: [b"SMOVE", s(), s(), m()],
            # What is left behind is not for chance.
            lambda: [b"SPOP", s(), self.pick(b"100000", b"0", b"-1", b"x", b"9223372036854775808")],
            lambda: [b"SPOP", s()] + self.options(self.pick(b"1", b"2"), b"x", most=1) if not inside else [b"SCARD", s()],
            lambda: [b"SRANDMEMBER", s()] + self.options(lambda self: [self.count()], most=2),
            lambda: [self.pick(b"SINTER", b"SUNION", b"SDIFF")] + [s() for _ in range(self.random.randrange(1, 4))],
            lambda: [self.pick(b"SINTERSTORE", b"SUNIONSTORE", b"SDIFFSTORE"), s()] + [s() for _ in range(self.random.randrange(1, 4))],
            lambda: [b"SINTERCARD", self.pick(b"1", b"2", b"2", b"3", b"0", b"-1", b"x", b"9223372036854775807")] + [s() for _ in range(self.random.randrange(1, 4))] + self.options(lambda self: [self.pick(b"LIMIT", b"limit"), self.pick(b"0", b"1", b"2", b"-1", b"x")], b"LIMIT", b"bad", most=1),
            lambda: [b"SSCAN", s(), self.pick(b"0", b"0", b"0", b"x", b""), b"COUNT", self.pick(b"100000", b"100000", b"0", b"x")] + self.options(lambda self: [b"MATCH", self.pick(b"*", b"m*", b"[0-9]")], b"bad", most=1),
            lambda: [self.pick(b"DEL", b"TYPE", b"GET", b"EXPIRE", b"PERSIST", b"APPEND", b"TTL", b"EXISTS"), s()] + self.options(b"100000", most=1),
            lambda: [self.pick(b"RENAME", b"RENAMENX", b"COPY"), s(), s()],
            self.sorted_add,
            self.sorted_add,
            self.sorted_add,
            self.ranged,
            self.ranged,
            self.ranged,
            self.counted,
            self.combined,
            self.combined,
            self.geo,
            self.geo,
            self.geo,
            self.hyperloglog,
            self.hyperloglog,
            self.hyperloglog,
            lambda: [b"ZRANGE", TAG + self.pick(b"g1", b"g2"), b"0", b"-1"] + self.options(b"WITHSCORES", most=1),
            lambda: [b"ZINCRBY", z(), self.score(), w()],
            lambda: [b"ZREM", z()] + [w() for _ in range(self.random.randrange(1, 4))],
            lambda: [self.pick(b"ZSCORE", b"ZRANK", b"ZREVRANK"), z(), w()],
            lambda: [b"ZMSCORE", z()] + [w() for _ in range(self.random.randrange(1, 4))],
            lambda: [b"ZCARD", z()],
            lambda: [self.pick(b"ZPOPMIN", b"ZPOPMAX"), z()] + self.options(self.pick(b"1", b"2", b"100", b"0", b"-1", b"x"), most=1),
            lambda: [b"ZMPOP", self.pick(b"1", b"2", b"2", b"3", b"0", b"x"), z(), z(), self.pick(b"MIN", b"MAX", b"max", b"x" if self.chance(0.2) else b"MIN")] + self.options(lambda self: [b"COUNT", self.pick(b"1", b"3", b"0", b"x")], b"bad", most=1),
            lambda: [b"ZRANDMEMBER", z()] + self.options(lambda self: [self.count()], b"withscores", most=2),
            lambda: [b"ZSCAN", z(), self.pick(b"0", b"0", b"0", b"x", b""), b"COUNT", self.pick(b"100000", b"100000", b"0", b"x")] + self.options(lambda self: [b"MATCH", self.pick(b"*", b"m*", b"[0-9]")], b"bad", most=1),
            lambda: [self.pick(b"DEL", b"TYPE", b"GET", b"EXPIRE", b"PERSIST", b"APPEND", b"HGET", b"SADD", b"SCARD"), z()] + self.options(b"100000", most=1),
            lambda: [self.pick(b"RENAME", b"RENAMENX", b"COPY"), z(), z()],
            lambda: [b"ECHO", v()],
            lambda: [b"PING"] + [v() for _ in range(self.random.choice([0, 0, 1, 2]))],
            lambda: [b"SELECT", self.pick(b"0", b"0", b"16", b"-1", b"x", b"")],
            lambda: [b"CLIENT", self.pick(b"GETNAME", b"GETREDIR", b"TRACKINGINFO", b"nonsense", b"ID x")],
            lambda: [b"CLIENT", b"SETNAME", self.pick(b"me", b"", b"a b")],
            lambda: [b"CLIENT"] + self.pick([b"KILL"], [b"KILL", b"TYPE", b"nonsense"], [b"KILL", b"USER", b"nobody"], [b"KILL", b"SKIPME", b"maybe"],
                                            [b"KILL", b"ID", b"0"], [b"KILL", b"TYPE", b"pubsub"], [b"KILL", b"1.2.3.4:5"], [b"LIST", b"TYPE", b"nonsense"],
                                            [b"LIST", b"ID"], [b"LIST", b"ID", b"x"], [b"LIST", b"TYPE", b"replica"], [b"NO-EVICT", b"x"], [b"REPLY", b"x"],
                                            [b"KILL", b"LADDR", b"1.2.3.4:5"], [b"KILL", b"ADDR"], [b"UNBLOCK", b"999999"], [b"UNBLOCK", b"x"],
                                            [b"UNBLOCK", b"999999", b"x"]),
            lambda: self.pick([b"AUTH", b"x"], [b"AUTH", b"default", b"x"], [b"AUTH", b"a", b"b"], [b"AUTH", b"a", b"b", b"c"]),
            lambda: self.pick([b"SLOWLOG", b"LEN"], [b"SLOWLOG", b"LEN", b"x"], [b"SLOWLOG", b"GET", b"-2"], [b"SLOWLOG", b"GET", b"x"], [b"SLOWLOG"],
                              [b"LATENCY", b"LATEST"], [b"LATENCY", b"nonsense"], [b"LATENCY", b"RESET"], [b"FUNCTION", b"LIST"], [b"FUNCTION", b"FLUSH", b"x"],
                              [b"FUNCTION", b"LIST", b"x"], [b"CONFIG", b"GET"], [b"CONFIG", b"SET", b"timeout"], [b"CONFIG", b"nonsense"],
                              [b"CONFIG", b"SET", b"nonsense", b"1"], [b"CONFIG", b"SET", b"timeout", b"0", b"timeout", b"0"], [b"OBJECT", b"ENCODING"],
                              [b"CONFIG", b"GET", b"appendonlyx", b"TIMEOUT"], [b"CONFIG", b"SET", b"timeout", b"x"]),
            lambda: self.pick([b"COMMAND", b"COUNT", b"x"], [b"COMMAND", b"GETKEYS", b"GET"], [b"COMMAND", b"GETKEYS", b"MSET", b"a", b"1", b"b", b"2"],
                              [b"COMMAND", b"GETKEYS", b"PING", b"x"], [b"COMMAND", b"GETKEYS", b"LMPOP", self.pick(b"1", b"2", b"3", b"0", b"x"), b"a", b"b", b"LEFT"], [b"COMMAND", b"GETKEYS", b"OBJECT", b"ENCODING", b"k"],
                              [b"COMMAND", b"GETKEYSANDFLAGS", b"SET", b"k", b"v"] + self.options(b"GET", b"NX"), [b"COMMAND", b"LIST", b"x"],
                              [b"COMMAND", b"GETKEYSANDFLAGS", b"BITOP", b"AND", b"d", b"a", b"b"], [b"COMMAND", b"INFO", b"nonsense", b"get|x"],
                              [b"COMMAND", b"LIST", b"FILTERBY", b"ACLCAT", b"bitmap"], [b"COMMAND", b"LIST", b"FILTERBY", b"MODULE", b"x"],
                              [b"COMMAND", b"INFO", self.pick(b"lmpop", b"lmove", b"ltrim", b"lpush", b"get", b"set", b"BITOP", b"client|kill", b"object|encoding", b"config|set", b"msetnx", b"getex")]),
            lambda: self.pick([b"nonsense", b"a", b"b"], [b"GET"], [b"get", k(), k()], [b"MSET", k()], [b"WAIT", b"x", b"0"], [b"WAIT", b"0", b"-1"], [b"QUIT"] if self.chance(0.05) else [b"PING"]),
            lambda: self.pick([b"UNWATCH"], [b"DISCARD"] if not inside else [b"PING"], [b"EXEC", b"x"] if self.chance(0.1) else [b"PING"]),
        ]
        alone = [
            lambda: [b"MSETNX"] + [word for _ in range(self.random.randrange(1, 4)) for word in (k(), v())],
            lambda: [b"DBSIZE"],
            lambda: [b"KEYS", self.pattern()],
            lambda: [b"SCAN", self.pick(b"0", b"00", b"", b"+0", b"x", b" 0", b"-", b"99999999999999999999"), b"COUNT", self.pick(b"100000", b"0", b"-1", b"x")] + self.options(lambda self: [b"MATCH", self.pattern()], lambda self: [b"TYPE", self.pick(b"string", b"hash", b"set", b"STRING")], b"MATCH", b"bad", most=2),
            lambda: [b"RANDOMKEY"],
            lambda: [b"HELLO", self.pick(b"2", b"3", b"3", b"4", b"x")] + self.options(lambda self: [b"SETNAME", self.pick(b"me", b"a b")], lambda self: [b"AUTH", b"default", b"x"], lambda self: [b"AUTH", b"a", b"b"], b"AUTH", b"x", most=2),
            lambda: [b"FLUSHDB"] + self.options(b"SYNC", b"ASYNC", b"x", most=2),
            lambda: [b"RESET"] if self.chance(0.3) else [b"PING"],
        ]
        choices = every if inside or self.chance(0.9) else alone
        words = self.random.choice(choices)()
        if self.chance(0.02):
            words = words[:-1] if self.chance(0.5) and len(words) > 1 else words + [self.random.choice(JUNK)]
        if self.chance(0.05):
            words = [words[0].swapcase()] + words[1:]
        if inside and words[0].lower() in AHEAD:
            words = words[:3]
        return words

    def step(self):
        """A connection, and the commands that it sends at once."""
        commands = []
        if self.chance(0.12):
            if self.chance(0.3):
                commands.append([b"WATCH"] + [self.key() for _ in range(self.random.randrange(1, 3))])
                if self.chance(0.4):
                    # Maybe something changes between.
                    return [(0, commands), (1, [[b"SET", self.key(), self.value()]]), (0, self.transaction())]
            commands += self.transaction()
        else:
            for _ in range(self.random.choice([1, 1, 1, 2, 3, 5, 9, 20])):
                commands += self.apart(self.command(False))
                if commands[-1][0].upper() == b"SADD" and len(commands[-1]) > 3:
                    # Redis keeps what it once took, here it goes by what is there: so only of a new one.
                    if self.chance(0.2):
                        commands[-1:] = [[b"DEL", commands[-1][1]], commands[-1], [b"OBJECT", b"ENCODING", commands[-1][1]]]
                if commands[-1][0] == b"SET" and len(commands[-1]) == 3 and self.chance(0.1):
                    commands.append([b"OBJECT", b"ENCODING", commands[-1][1]])
        return [(0 if self.chance(0.8) else 1, commands)]

    def apart(self, words):
        """A command, with what keeps it from being judged by, or making, a state in which the two may differ."""
        name = words[0].upper()
        if name in (b"SORT", b"SORT_RO"):
            # Redis refuses to sort by number when the number before, in whichever command, was out of range.
            return [[b"ZADD", TAG + b"none", b"XX", b"1", b"m"], words]
        if name == b"PFCOUNT" and len(words) == 2 and words[1] != COUNTED:
            # Redis writes what it has counted into the value; here counting writes nothing.
            copy = TAG + b"copy"
            return [[b"DEL", copy], [b"COPY", words[1], copy], [words[0], copy], [b"DEL", copy]]
        if name == b"SPOP" and len(words) > 1:
            # Which members are left is chance.
            return [words, [b"DEL", words[1]]]
        return [words]

    def transaction(self):
        inner = [words for _ in range(self.random.choice([0, 1, 2, 3, 6, 12])) for words in self.apart(self.command(True))]
        if self.chance(0.05):
            inner.append(self.pick([b"MULTI"], [b"WATCH", self.key()], [b"SAVE"], [b"CLIENT"], [b"DISCARD", b"x"]))
        return [[b"MULTI"]] + inner + [[self.pick(b"EXEC", b"EXEC", b"EXEC", b"EXEC", b"DISCARD")]]

    def round(self):
        return [step for _ in range(STEPS) for step in self.step()]


def told(answer):
    """An answer without what differs between any two servers."""
    mark, content = answer
    if mark == "%":
        pairs = [(told(key), told(value)) for key, value in content]
        return (mark, [pair for pair in pairs if pair[0] != ("$", b"id")])
    if mark in "*~" and content is not None:
        return (mark, [told(item) for item in content])
    return answer


def ordered(answer):
    mark, content = answer
    return (mark, sorted(content, key=repr)) if mark in "*~" and content is not None else answer


def paired(answer):
    """Fields and values, in whatever order they came."""
    mark, content = answer
    if mark == "*" and content is not None:
        content = list(zip(content[::2], content[1::2]))
    return (mark, sorted(content, key=repr)) if mark in "*%" and content is not None else answer


def by_chance(words, redis, kvdb):
    """As many elements, whichever; the same ones where it is all of them."""
    if redis[0] != kvdb[0] or redis[0] not in "*~":
        return redis[0] == kvdb[0] and redis[0] == "$" and (redis[1] is None) == (kvdb[1] is None)
    if words[2] in (b"100000", b"9223372036854775807"):
        flat = len(words) > 3 and kvdb[1] and kvdb[1][0][0] == "$"
        return paired(redis) == paired(kvdb) if flat else ordered(redis) == ordered(kvdb)
    return len(redis[1]) == len(kvdb[1])


def zeroed(answer):
    """With 0 for -0."""
    mark, content = answer
    if mark in "*~" and content is not None:
        return (mark, [zeroed(item) for item in content])
    return (mark, b"0") if content == b"-0" else answer


def without_id(answer):
    mark, content = answer
    if mark == "*" and content:
        place = next((place for place, item in enumerate(content) if item == ("$", b"id")), None)
        if place is not None:
            return (mark, content[: place + 1] + content[place + 2 :])
    return told(answer)


def allowed(words, redis, kvdb):
    """Whether a difference is one that docs/redis.md names."""
    name = words[0].upper()
    if name in EXPIRY and redis[0] == kvdb[0] == ":":
        return abs(redis[1] - kvdb[1]) <= EXPIRY[name] and (redis[1] < 0) == (kvdb[1] < 0)
    if name == b"GET" and words[1] == COUNTED and redis[0] == kvdb[0] == "$":
        # The number that Redis has counted stands in it.
        return redis[1][:8] == kvdb[1][:8] == b"HYLL" + redis[1][4:8] and redis[1][16:] == kvdb[1][16:]
    if name == b"KEYS":
        return ordered(redis) == ordered(kvdb)
    if name in (b"HKEYS", b"HVALS", b"SMEMBERS", b"SINTER", b"SUNION", b"SDIFF"):
        # In no order.
        return ordered(redis) == ordered(kvdb)
    if name in (b"SPOP", b"SRANDMEMBER", b"HRANDFIELD", b"ZRANDMEMBER"):
        return by_chance(words, redis, kvdb)
    if name == b"HGETALL":
        return paired(redis) == paired(kvdb)
    if name.startswith(b"Z") and redis != zeroed(redis):
        # -0 is 0 here.
        return same(words, zeroed(redis), kvdb, [])
    if name in (b"ZRANK", b"ZREVRANK") and len(words) > 3 and kvdb[0] == "-":
        # Redis 7.2 has an option more.
        return redis[1].startswith(b"ERR wrong number")
    if name == b"ZSCAN" and redis[0] == kvdb[0] == "*":
        # A large set of Redis tells whole scores otherwise than a small one.
        redis, kvdb = ([(member, float(score[1])) for member, score in zip(*[iter(side[1][1][1])] * 2)] for side in (redis, kvdb))
        return sorted(redis) == sorted(kvdb)
    if name == b"SSCAN" and redis[0] == kvdb[0] == "*":
        return redis[1][0] == kvdb[1][0] and ordered(redis[1][1]) == ordered(kvdb[1][1])
    if name == b"HSCAN" and redis[0] == kvdb[0] == "*":
        return redis[1][0] == kvdb[1][0] and paired(redis[1][1]) == paired(kvdb[1][1])
    if name == b"DUMP":
        # Collections in a plain form, which the other must restore: see `crossed`.
        return redis[0] == kvdb[0] == "$" and None not in (redis[1], kvdb[1]) and kvdb[1][0] == PLAIN.get(redis[1][0])
    if name == b"SCAN" and redis[0] == kvdb[0] == "*":
        return redis[1][0] == kvdb[1][0] and ordered(redis[1][1]) == ordered(kvdb[1][1])
    if name == b"CLIENT" and words[1].upper() in (b"LIST", b"INFO") and redis[0] == kvdb[0] != "-":
        def names(line):
            return [field.split(b"=")[0] for field in line.split(b" ")]

        # The fields are the same, not what is in them.
        return names(redis[1].splitlines()[0]) == names(kvdb[1].splitlines()[0])
    if name == b"OBJECT" and words[1].upper() == b"IDLETIME":
        # Always 0 here.
        return redis[0] == kvdb[0] == ":"
    if name in (b"SORT", b"SORT_RO") and redis[0] == kvdb[0] == "*" and any(b"\x00" in item[1] for item in redis[1]):
        # Redis compares texts only up to a zero byte.
        return ordered(redis) == ordered(kvdb)
    if name in (b"SORT", b"SORT_RO") and redis[0] == kvdb[0] == "*" and b"nosort" in words and not words[1].startswith(TAG + b"l"):
        # The members of a set are in no order.
        return len(redis[1]) == len(kvdb[1]) if b"LIMIT" in words else ordered(redis) == ordered(kvdb)
    if name == b"LCS" and redis[1] == b"ERR The specified keys must contain string values":
        return kvdb[0] == "-" and kvdb[1].startswith(b"WRONGTYPE")
    if name == b"LCS" and kvdb[1] == b"ERR Insufficient memory, transient memory for LCS exceeds proto-max-bulk-len":
        # More than 16 Mi cells.
        return True
    if name == b"RANDOMKEY":
        return redis[0] == kvdb[0] and (redis[1] is None) == (kvdb[1] is None)
    if name == b"HELLO" and redis[0] != "-":
        return without_id(redis) == without_id(kvdb)
    if name == b"COMMAND" and redis[0] == kvdb[0]:
        # Only the commands that KvDB has.
        what = words[1].upper() if len(words) > 1 else b""
        if what == b"LIST" and redis[0] == "*":
            return all(item in redis[1] or item[1] in LATER for item in kvdb[1])
        return what in (b"", b"COUNT", b"DOCS") or (what == b"INFO" and len(words) == 2)
    if redis[0] == kvdb[0] == "-" and b"\xef\xbf\xbd" in kvdb[1]:
        # What isn't UTF-8 is shown as U+FFFD.
        return redis[1].decode("utf-8", "replace") == kvdb[1].decode("utf-8")
    return False


def same(words, redis, kvdb, queued):
    if redis == kvdb:
        return True
    if words[0].upper() == b"EXEC" and redis[0] == kvdb[0] == "*" and redis[1] and kvdb[1]:
        if len(redis[1]) == len(kvdb[1]) == len(queued):
            return all(same(*three, []) for three in zip(queued, redis[1], kvdb[1]))
    return allowed(words, redis, kvdb)


def whole(client, key, of):
    """All that a key holds, which is the content of another one or its own."""
    kind = client.ask(b"TYPE", key)[1]
    name, *more = WHOLE[kind]
    answer = client.ask(name, key, *more)
    if of == COUNTED and answer[0] == "$":
        # The number that Redis has counted stands in it.
        answer = ("$", answer[1][:8] + answer[1][16:])
    shaped = {b"hash": paired, b"set": ordered, b"zset": zeroed}.get(kind)
    return (kind, shaped(answer) if shaped else answer)


def crossed(redis, kvdb):
    """Whether what each server dumps is the same after the other has restored it. The first difference: command and both answers."""
    for key in sorted(item for _, item in redis.ask(b"KEYS", b"*")[1]):
        there = whole(redis, key, key)
        for source, target in ((redis, kvdb), (kvdb, redis)):
            restored = target.ask(b"RESTORE", TAG + b"crossed", b"0", source.ask(b"DUMP", key)[1] or b"", b"REPLACE")
            if restored == ("+", b"OK"):
                restored = whole(target, TAG + b"crossed", key)
            if restored != there:
                return ([b"DUMP", key], there if source is redis else restored, restored if source is redis else there)
        for client in (redis, kvdb):
            client.ask(b"DEL", TAG + b"crossed")
    return None


class Pair:
    """Two servers that are asked the same."""

    def __init__(self, redis, kvdb):
        self.ports = (redis, kvdb)

    def replay(self, steps):
        """Sends steps to empty servers. The first difference: place, command and both answers."""
        for port in self.ports:
            client = Client(port)
            client.ask(b"FLUSHALL")
            client.close()
        pairs = {}
        queued = {}
        try:
            for place, (connection, commands) in enumerate(steps):
                if connection not in pairs:
                    pairs[connection] = [Client(port) for port in self.ports]
                    queued[connection] = []
                found = self.compare(pairs[connection], commands, queued[connection])
                if found == "gone":
                    for client in pairs.pop(connection):
                        client.close()
                elif found:
                    return (place, *found)
            pairs["crossed"] = [Client(port) for port in self.ports]
            found = crossed(*pairs["crossed"])
            if found:
                return (len(steps) - 1, *found)
        finally:
            for clients in pairs.values():
                for client in clients:
                    client.close()
        return None

    def is_of_a_set(self, words, redis, kvdb):
        """Whether members of a set were told unsorted. It may have been renamed to a list's name, and is in no order there."""
        if words[0].upper() not in (b"SORT", b"SORT_RO") or b"nosort" not in words or not redis[0] == kvdb[0] == "*":
            return False
        client = Client(self.ports[0])
        kind = client.ask(b"TYPE", words[1])[1]
        client.close()
        return kind == b"set" and (len(redis[1]) == len(kvdb[1]) if b"LIMIT" in words else ordered(redis) == ordered(kvdb))

    def compare(self, clients, commands, queued):
        for client in clients:
            client.send(commands)
        for words in commands:
            answers = []
            for client in clients:
                try:
                    answers.append(client.answer())
                except (Gone, ConnectionError):
                    answers.append(("closed", None))
            redis, kvdb = answers
            if not same(words, redis, kvdb, queued) and not self.is_of_a_set(words, redis, kvdb):
                return (words, redis, kvdb)
            if redis[0] == "closed":
                return "gone"
            if redis == ("+", b"QUEUED"):
                queued.append(words)
            elif words[0].upper() in (b"EXEC", b"DISCARD", b"RESET") and redis[1] != b"ERR wrong number of arguments for 'discard' command":
                queued.clear()
        return None

    def shortened(self, steps):
        """Fewer steps, and fewer commands in them, that differ still."""
        first = self.replay(steps)
        if first is None:
            return steps

        def differs(some):
            found = self.replay(some) if some else None
            return found is not None and found[1] == first[1] and found[2][0] == first[2][0] and found[3][0] == first[3][0]

        single = [(connection, [words]) for connection, commands in steps for words in commands]
        steps = single if differs(single) else steps
        size = max(1, len(steps) // 2)
        while size:
            place = 0
            while place < len(steps):
                fewer = steps[:place] + steps[place + size :]
                if differs(fewer):
                    steps = fewer
                else:
                    place += size
            size //= 2
        for place in range(len(steps)):
            at = 0
            while at < len(steps[place][1]) and len(steps[place][1]) > 1:
                connection, commands = steps[place]
                fewer = steps[:place] + [(connection, commands[:at] + commands[at + 1 :])] + steps[place + 1 :]
                if differs(fewer):
                    steps = fewer
                else:
                    at += 1
        return steps


def shown(words):
    return " ".join(repr(word)[1:] if len(word) < 80 else repr(word[:70])[1:] + "..." for word in words)


def show(pair, seed, steps):
    found = pair.replay(steps)
    print(f"difference in the round of seed {seed}:")
    for connection, commands in steps:
        for words in commands:
            print(f"  {connection}> {shown(words)}")
    if found:
        _, words, redis, kvdb = found
        print(f"  at     {shown(words)}\n  redis  {str(redis)[:600]}\n  kvdb   {str(kvdb)[:600]}", flush=True)


def described(pair):
    """Commands whose descriptions differ."""
    redis, kvdb = (Client(port) for port in pair.ports)
    names = [item[1] for item in kvdb.ask(b"COMMAND", b"LIST")[1]]
    differ = []
    for name in names:
        of_redis, of_kvdb = (client.ask(b"COMMAND", b"INFO", name)[1][0] for client in (redis, kvdb))
        if name in LATER:
            continue
        if name in AHEAD:
            # As in Redis 7.2, with an option more.
            of_redis[1][1] = of_kvdb[1][1]
        if name in (b"sort", b"sort_ro"):
            # Keys that patterns name aren't there, nor told.
            of_redis[1][8] = of_kvdb[1][8]
        if of_redis[1][:9] != of_kvdb[1][:9]:
            differ.append((name, of_redis, of_kvdb))
            continue
        ours = {inside[1][0]: inside for inside in of_kvdb[1][9][1]}
        theirs = {inside[1][0]: inside for inside in of_redis[1][9][1]}
        differ += [(key[1], theirs[key], ours[key]) for key in ours if key in theirs and ours[key] != theirs[key]]
    for name, of_redis, of_kvdb in differ:
        print(f"COMMAND INFO {name.decode()}\n  redis  {of_redis}\n  kvdb   {of_kvdb}")
    return len(differ)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--redis", type=int, required=True)
    options.add_argument("--kvdb", type=int, required=True)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--commands", type=int, default=300_000)
    options.add_argument("--most", type=int, default=10, help="differences after which to stop")
    options = options.parse_args()
    pair = Pair(options.redis, options.kvdb)
    started = time.time()
    count = rounds = 0
    differences = described(pair)
    while count < options.commands and differences < options.most:
        seed = options.seed + rounds
        steps = Maker(seed).round()
        count += sum(len(commands) for _, commands in steps)
        rounds += 1
        found = pair.replay(steps)
        if found:
            differences += 1
            show(pair, seed, pair.shortened(steps[: found[0] + 1]))
    print(f"lockstep: {count} commands in {rounds} rounds from seed {options.seed}, {time.time() - started:.0f} s: {differences} differences")
    sys.exit(1 if differences else 0)


if __name__ == "__main__":
    main()
