import API
import Foundation
import Testing

/// Promise 8: bad input changes nothing, and the error says what to do.
@Suite("Bad input", .serialized)
struct BadInputTests {
    @Test("wrong sizes, unknown names and duplicates are refused with the documented exit codes, and change nothing")
    func commands() throws {
        let node = try TestNode()
        defer { node.stop() }
        try node.start()
        try node.must("volume", "create", "v", "--size", "64MiB")
        for size in ["0", "100", "-1", "1XB", "65TiB", "9999999999999999999999"] {
            let result = try node.cli(["volume", "create", "w", "--size", size])
            #expect([1, 2].contains(result.status) && !result.errors.isEmpty && result.output.isEmpty, "\(result)")
        }
        for arguments in [
            ["volume", "show", "nope"], ["volume", "delete", "nope"], ["snapshot", "create", "nope"],
            ["snapshot", "show", "nope"], ["volume", "create", "v", "--size", "64MiB"],
            ["volume", "resize", "v", "--size", "4KiB"],
            ["target", "show", "iqn.2026-11.test:nope"], ["clone", "create", "nope", "--name", "x"],
            ["agent", "show", "nope"],
            ["volume", "revert", "v", "--to", "nope"], ["job", "show", "nope"],
        ] {
            let result = try node.cli(arguments)
            #expect(result.status == 1, "\(result)")
            #expect(!result.errors.isEmpty && result.output.isEmpty, "\(result)")
        }
        #expect(try node.cli("volume", "frobnicate").status == 2)
        #expect(try node.cli("volume", "create").status == 2)
        #expect(try node.json([VolumeInfo].self, "volume", "list").map(\.name) == ["v"])
        #expect(node.terminate() == 0)
        #expect(try node.cli("--api", "http://127.0.0.1:1", "status").status == 3 || node.cli("status").status == 3)
    }

    @Test("a truncated or wrong configuration file is refused before anything is made")
    func configuration() throws {
        let folder = try TemporaryFolder(prefix: "sp-conf")
        defer { folder.remove() }
        let files = [
            ("data: [", "is not YAML"), ("{", "is not YAML"), ("- data\n", "must be a mapping of settings"),
            ("iscsi:\n  listen: seven\n", "0.yaml:2: iscsi.listen"),
            ("iscsi.listen: 127.0.0.1:99999\n", "0.yaml:1: iscsi.listen"),
            ("iscsi:\n  listn: 127.0.0.1:3260\n", "did you mean \"iscsi.listen\"?"),
            ("iscsiListen: 127.0.0.1:3260\n", "did you mean \"iscsi.listen\"?"),
            ("colour: green\n", "unknown setting \"colour\"; known are data, "),
            ("data: /tmp/a\ndata: /tmp/b\n", "twice"),
        ]
        for (text, message) in files {
            let path = "\(folder.path)/0.yaml"
            try text.write(toFile: path, atomically: true, encoding: .utf8)
            let checked = try Shell.run([Components.bin + "/stillpoint", "configcheck", path])
            #expect(checked.status == 1 && checked.errors.contains(message), "\(text): \(checked)")
            let served = try Shell.run(
                [Components.bin + "/stillpoint", "serve", "--config", path, "--data", folder.path + "/data"],
                environment: ["STILLPOINT_RUN_DIR": folder.path + "/run"], timeoutSeconds: 60)
            #expect(served.status == 1 && served.errors.contains(message), "\(text): \(served)")
            #expect(!FileManager.default.fileExists(atPath: folder.path + "/data"))
        }
    }

    @Test(
        "garbage on the iSCSI, API and agent ports hurts nobody",
        .enabled(if: Components.isRoot, "needs root for tmpfs"))
    func garbage() throws {
        let node = try TestNode()
        defer { node.stop() }
        try node.start()
        let agent = try TestAgent(name: "host-a", node: node)
        defer { agent.stop() }
        try agent.enroll()
        try agent.start()
        let spray = """
            import os, random, socket, sys
            random.seed(7)
            for port in map(int, sys.argv[1:]):
                for round in range(60):
                    s = socket.create_connection(("127.0.0.1", port), timeout=60)
                    s.settimeout(0.2)
                    try:
                        kind = round % 4
                        if kind == 0: s.sendall(os.urandom(random.randrange(1, 5000)))
                        elif kind == 1: s.sendall(b"\\x43\\x87" + os.urandom(46))
                        elif kind == 2: s.sendall(b"GET " + b"A" * random.randrange(1, 100000) + b" HTTP/1.1\\r\\n")
                        else: s.sendall(b"\\x16\\x03\\x01\\xff\\xff" + os.urandom(300))
                        s.recv(1000)
                    except OSError:
                        pass
                    s.close()
            """
        func port(_ text: String) -> String { String(text.split(separator: ":").last ?? "") }
        try Shell.check(
            ["python3", "-c", spray, port(node.iscsi), port(node.api), "\(agent.port)"], timeoutSeconds: 300)
        #expect(try node.cli("status").status == 0)
        #expect(node.isRunning && agent.process?.isRunning == true)
        // It may have been asked just when its port was busy with garbage.
        #expect(try Shell.wait { try node.json(AgentInfo.self, "agent", "show", "host-a").isReachable })
        try node.must("volume", "create", "v", "--size", "64MiB")
    }

    @Test(
        "an enrolment token works once, and not after its time", .enabled(if: Components.isRoot, "needs root for tmpfs")
    )
    func tokens() throws {
        let node = try TestNode()
        defer { node.stop() }
        try node.start()
        let agent = try TestAgent(name: "host-a", node: node)
        defer { agent.stop() }
        try agent.enroll()
        let again = try Shell.run([
            Components.bin + "/stillpoint-agent", "enroll", "--node", node.api, "--token-file",
            agent.folder.path + "/token",
            "--address", "127.0.0.1:\(agent.port)", "--state", agent.folder.path + "/state2",
        ])
        #expect(again.status == 1 && again.errors.contains("token"), "\(again)")
        #expect(!FileManager.default.fileExists(atPath: agent.folder.path + "/state2/agent.crt"))
    }

    @Test(
        "an agent of another node, and a node of another agent, are refused",
        .enabled(if: Components.isRoot, "needs root for tmpfs"))
    func foreignCertificates() throws {
        let node = try TestNode()
        defer { node.stop() }
        try node.start()
        let other = try TestNode()
        defer { other.stop() }
        try other.start()
        let mine = try TestAgent(name: "host-a", node: node)
        defer { mine.stop() }
        try mine.enroll()
        try mine.start()
        // The other node believes that its own agent lives at this address.
        let theirs = try TestAgent(name: "host-a", node: other)
        defer { theirs.stop() }
        theirs.port = mine.port
        try theirs.enroll()
        let isRefused = try Shell.wait {
            let seen = try other.json(AgentInfo.self, "agent", "show", "host-a")
            return !seen.isReachable && seen.failure != nil
        }
        #expect(isRefused, "\(other.log.suffix(1500))")
        #expect(try Shell.wait { try node.json(AgentInfo.self, "agent", "show", "host-a").isReachable })
    }
}
