import API
import Foundation
import Testing

/// What hosts see of a node whose iSCSI port is thrown everything at that a broken or hostile peer can do.
@Suite("Hostile peers", .serialized, .enabled(if: Components.hasQEMU, "needs qemu-io"))
struct HostilePeersTests {
    /// Holds connections in every state in which a peer can stop, keeps throwing garbage until the file `stop` is
    /// there, then goes on with what it held up and checks that the data is right. Each step that somebody waits for
    /// is confirmed by an answer of the node first.
    private static let peers = #"""
        import json, os, random, socket, struct, sys, threading, time
        host, port, target, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
        MIB, SEGMENT = 1 << 20, 256 << 10
        failures, rounds = [], [0] * 6

        def header(opcode, flags, tag, expected, number, cdb=b"", count=0, lun=0):
            return struct.pack(">BBHI2B6xIIII16s", opcode, flags, 0, count, 0, lun, tag, expected, number, 0, cdb)

        class Peer:
            def __init__(self, name, window=None):
                self.socket = socket.socket()
                if window: self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
                self.socket.settimeout(120)
                self.socket.connect((host, port))
                self.number = 1
                keys = ["InitiatorName=iqn.2026-11.test:" + name, "TargetName=" + target, "SessionType=Normal",
                        "HeaderDigest=None", "DataDigest=None", "InitialR2T=No", "ImmediateData=Yes",
                        "MaxRecvDataSegmentLength=%d" % SEGMENT, "FirstBurstLength=%d" % SEGMENT,
                        "MaxBurstLength=%d" % MIB]
                text = "".join(key + "\0" for key in keys).encode()
                login = bytearray(header(0x43, 0x87, 0, 0, 1, count=len(text)))
                login[8:14] = bytes([0x80, 0, 0, 0, 0, 1])
                self.socket.sendall(bytes(login) + text + bytes(-len(text) % 4))
                answer, _ = self.receive()
                assert answer[0] == 0x23 and answer[36] == 0, answer
                while self.command(0x80, bytes(6))[0]: pass

            def send(self, flags, cdb, data=b"", expected=None, tag=None):
                expected = len(data) if expected is None else expected
                self.socket.sendall(header(1, flags, self.number if tag is None else tag, expected, self.number,
                                           cdb, len(data)) + data)
                self.number += 1

            def exactly(self, count, pause=0):
                parts = bytearray()
                while len(parts) < count:
                    part = self.socket.recv(min(count - len(parts), 8192 if pause else MIB))
                    if not part: raise OSError("closed")
                    parts += part
                    if pause: time.sleep(pause)
                return bytes(parts)

            def receive(self, pause=0):
                head = self.exactly(48, pause)
                count = struct.unpack(">I", head[4:8])[0] & 0xffffff
                return head, self.exactly(count + -count % 4, pause)[:count]

            # The status of a command, and its data. Pings need no answer within the time that this takes.
            def command(self, flags, cdb, data=b"", expected=None):
                self.send(flags, cdb, data, expected)
                return self.end()

            def end(self, pause=0):
                data = b""
                while True:
                    head, part = self.receive(pause)
                    if head[0] & 0x3f == 0x25: data += part
                    if head[0] & 0x3f == 0x21 or head[0] & 0x3f == 0x25 and head[1] & 1: return head[3], data

        def rw(opcode, offset, count): return struct.pack(">BBIBHB6x", opcode, 0, offset // 512, 0, count // 512, 0)
        def content(offset, count):
            return b"".join(struct.pack(">Q", at) * 64 for at in range(offset, offset + count, 512))

        base = 40 * MIB
        writer = Peer("writer")
        for at in range(0, 4 * MIB, SEGMENT):
            assert writer.command(0xa0, rw(0x2a, base + at, SEGMENT), content(base + at, SEGMENT))[0] == 0

        # Logins that stop: in the header, in the text, and with nothing at all.
        halves = [socket.create_connection((host, port), timeout=120) for _ in range(15)]
        for index, half in enumerate(halves):
            half.sendall((header(0x43, 0x87, 0, 0, 1, count=4000) + b"InitiatorName=")[:[0, 30, 60][index % 3]])
        # Writes whose data is asked for and never comes; the first answer says that they have been heard.
        idle = [Peer("idle%d" % index) for index in range(6)]
        for peer in idle:
            for index in range(64): peer.send(0xa0, rw(0x2a, 48 * MIB, MIB), expected=MIB)
            assert peer.receive()[0][0] == 0x31
        late = Peer("late")
        late.send(0xa0, rw(0x2a, base, SEGMENT), expected=SEGMENT)
        request = late.receive()[0]
        assert request[0] == 0x31
        # Reads of far more than a peer may have waiting for it, of which it takes nothing.
        deaf = [Peer("deaf%d" % index, 65536) for index in range(6)]
        for peer in deaf:
            for index in range(250): peer.send(0xc0, rw(0x28, base + index % 16 * SEGMENT, SEGMENT), expected=SEGMENT)
            peer.exactly(1)
        # One that takes its data in small pieces, all the time.
        slow, taken = Peer("slow", 65536), [0]

        def trickle():
            while not os.path.exists(folder + "/stop") or not taken[0]:
                at = base + taken[0] % 16 * SEGMENT
                slow.send(0xc0, rw(0x28, at, SEGMENT), expected=SEGMENT)
                status, data = slow.end(0.001)
                if status or data != content(at, SEGMENT): failures.append("the slow reader got wrong data")
                taken[0] += 1

        def garbage(seed):
            noise = random.Random(seed)
            while not os.path.exists(folder + "/stop"):
                kind = noise.randrange(6)
                try:
                    peer = None
                    if kind < 3:
                        raw = socket.create_connection((host, port), timeout=120)
                    else:
                        peer = Peer("noise%d" % seed)
                        raw = peer.socket
                    raw.settimeout(0.05)
                    if kind == 0: raw.sendall(noise.randbytes(noise.randrange(1, 5000)))
                    elif kind == 1: raw.sendall(header(0x43, 0x87, 0, 0, 1, count=0xffffff) + noise.randbytes(4096))
                    elif kind == 2: raw.sendall(b"GET / HTTP/1.1\r\nHost: " + b"a" * 70000)
                    elif kind == 3: raw.sendall(header(1, 0xa0, 1, 0xffffffff, 2, count=0xffffff) + bytes(9999))
                    elif kind == 4: raw.sendall((header(5, 0x80, 77, 77, 0, count=65536) + bytes(65536)) * 8)
                    else: raw.sendall(noise.randbytes(5000))
                    raw.recv(1000)
                except (OSError, AssertionError):
                    pass
                finally:
                    raw.close()
                rounds[kind] += 1

        # Those that stand still are alive, and say so.
        def sign_of_life():
            while not os.path.exists(folder + "/stop"):
                for peer in idle + [late]:
                    peer.socket.sendall(header(0x40, 0x80, 0xffffffff, 0xffffffff, peer.number))
                time.sleep(0.5)

        threads = [threading.Thread(target=trickle), threading.Thread(target=sign_of_life)] + [
            threading.Thread(target=garbage, args=(seed,)) for seed in (1, 2)]
        for thread in threads: thread.start()
        while min(rounds) < 1: time.sleep(0.01)
        open(folder + "/ready", "w").close()
        for thread in threads: thread.join()
        # What was held up goes on as if nothing had been.
        data = content(base, SEGMENT)
        late.socket.sendall(header(5, 0x80, 0, 0, 0, count=0)[:4] + struct.pack(">I", len(data)) + request[8:24]
                            + struct.pack(">IIIII4x", 0, 0, 0, 0, 0) + data)
        if late.end()[0]: failures.append("the late data was not taken")
        open(folder + "/result", "w").write(json.dumps({"failures": failures, "rounds": rounds, "taken": taken[0]}))
        """#

    /// Peak of the node's memory, in KiB.
    private func peakKiB(_ node: TestNode) throws -> Int {
        let status = try String(contentsOfFile: "/proc/\(node.pid)/status", encoding: .utf8)
        let line = status.split(separator: "\n").first { $0.hasPrefix("VmHWM:") }
        return try #require(line?.split(separator: " ").compactMap { Int($0) }.first)
    }

    /// Commands for `qemu-io`: pieces are written, read back and overwritten; and those that read what must be there.
    private static func load() -> (commands: [String], check: [String]) {
        var generator = SystemRandomNumberGenerator()
        var commands: [String] = []
        var last: [Int: (pattern: Int, length: Int)] = [:]
        for step in 0..<800 {
            // 32 places of 1 MiB.
            let place = Int.random(in: 0..<32, using: &generator)
            let length = [4096, 8192, 65_536, 262_144][step % 4]
            let pattern = 1 + step % 250
            if let known = last[place] {
                commands.append("read -P \(known.pattern) \(place << 20) \(min(known.length, length))")
            }
            commands.append("write -P \(pattern) \(place << 20) \(length)")
            // What was behind a shorter piece is of another pattern.
            last[place] = (pattern, length)
        }
        return (commands, last.sorted { $0.key < $1.key }.map { "read -P \($1.pattern) \($0 << 20) \($1.length)" })
    }

    @Test("garbage, half logins, readers that do not read and writers that do not write harm no load beside them")
    func verifiedLoad() throws {
        let node = try TestNode()
        defer { node.stop() }
        try node.start()
        try node.must("volume", "create", "v", "--size", "64MiB")
        try node.allowAny(volume: "v")
        let url = try node.url(volume: "v")
        let iqn = try node.json(VolumeInfo.self, "volume", "show", "v").exports[0].iqn
        let (commands, check) = Self.load()
        func run(_ lines: [String]) throws {
            let result = try Shell.run(
                ["qemu-io", "-f", "raw", "-t", "none", url], input: lines.joined(separator: "\n") + "\n",
                timeoutSeconds: 600)
            #expect(result.status == 0, "\(result.output.suffix(500)) \(result.errors.suffix(500))")
            // A wrong pattern and a failed command are lines of their own beside the count of what was moved.
            let moved = result.output.split(separator: "\n").filter { $0.contains(" bytes at offset ") }
            let wrong = result.output.split(separator: "\n").filter { $0.contains("failed") }
            #expect(moved.count == lines.count && wrong.isEmpty, "\(moved.count) of \(lines.count), \(wrong.prefix(5))")
        }
        let before = try peakKiB(node)
        let address = node.iscsi.split(separator: ":").map(String.init)
        let peers = try Shell.start(
            ["python3", "-c", Self.peers, address[0], address[1], iqn, node.folder.path],
            outputPath: node.folder.path + "/peers.log")
        defer { peers.killHard() }
        func exists(_ name: String) -> Bool { FileManager.default.fileExists(atPath: node.folder.path + "/" + name) }
        func log() -> String { (try? String(contentsOfFile: node.folder.path + "/peers.log", encoding: .utf8)) ?? "" }
        #expect(Shell.wait { exists("ready") || !peers.isRunning } && exists("ready"), "\(log())")
        try run(commands)
        try run(check)
        // Those who stand still and give signs of life have not been given up meanwhile.
        #expect(try node.json([SessionInfo].self, "session", "list").count >= 7)
        try "".write(toFile: node.folder.path + "/stop", atomically: false, encoding: .utf8)
        #expect(Shell.wait { !peers.isRunning })
        struct Result: Decodable {
            var failures: [String]
            var rounds: [Int]
            var taken: Int
        }
        let text = (try? Data(contentsOf: URL(filePath: node.folder.path + "/result"))) ?? Data()
        let result = try JSONDecoder().decode(Result.self, from: text)
        #expect(
            result.failures.isEmpty && result.rounds.allSatisfy { $0 > 0 } && result.taken > 0, "\(result) \(log())")
        // The readers that do not read have asked for 375 MiB.
        let grown = try peakKiB(node) - before
        #expect(grown < 192 << 10, "\(grown) KiB")
        try run(check)
        #expect(node.isRunning)
        #expect(node.terminate() == 0, "\(node.log.suffix(2000))")
    }
}
