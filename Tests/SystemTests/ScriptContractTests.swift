import API
import Foundation
import Testing

/// What other people's scripts stand on, read as they read it: words, JSON and exit codes, none of our own types.
@Suite("The contract for scripts", .serialized)
struct ScriptContractTests {
    private func object(_ node: TestNode, _ arguments: String...) throws -> [String: Any] {
        let result = try node.cli(arguments + ["-o", "json"])
        #expect(result.status == 0 && result.errors.isEmpty, "\(result)")
        return try #require(
            try JSONSerialization.jsonObject(with: Data(result.output.utf8)) as? [String: Any], "\(result)")
    }

    private func array(_ node: TestNode, _ arguments: String...) throws -> [[String: Any]] {
        let result = try node.cli(arguments + ["-o", "json"])
        #expect(result.status == 0 && result.errors.isEmpty, "\(result)")
        return try #require(
            try JSONSerialization.jsonObject(with: Data(result.output.utf8)) as? [[String: Any]], "\(result)")
    }

    @Test("volumes and snapshots are JSON with the documented names, and a volume is exported unless that is declined")
    func documents() throws {
        let node = try TestNode()
        defer { node.stop() }
        try node.start()
        try node.must("volume", "create", "v", "--size", "10MiB")
        let volume = try object(node, "volume", "show", "v")
        #expect(volume["name"] as? String == "v")
        #expect(volume["sizeBytes"] as? Int == 10 << 20)
        let naa = try #require(volume["naa"] as? String)
        #expect(naa.count == 32 && naa.allSatisfy(\.isHexDigit), "\(naa)")
        let export = try #require((volume["exports"] as? [[String: Any]])?.first)
        let iqn = try #require(export["iqn"] as? String)
        #expect(iqn.hasPrefix("iqn.") && export["lun"] as? Int == 0)
        try node.must("volume", "create", "plain", "--size", "1GiB", "--no-export")
        #expect((try object(node, "volume", "show", "plain")["exports"] as? [Any])?.isEmpty == true)
        try node.must("target", "allow", iqn, "--initiator", "any")

        try node.must("snapshot", "create", "v", "--name", "first")
        #expect(try array(node, "snapshot", "list", "plain").isEmpty)
        let listed = try #require(try array(node, "snapshot", "list", "v").first)
        let id = try #require(listed["id"] as? String)
        #expect(listed["name"] as? String == "first")
        #expect(listed["volumes"] as? [String] == ["v"])
        #expect(listed["requestedConsistency"] as? String == "crash")
        #expect(listed["achievedConsistency"] as? String == "crash")
        #expect(listed["quietSeconds"] is NSNumber)
        let created = try #require(listed["createdAt"] as? String)
        #expect(created.wholeMatch(of: /\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z/) != nil, "\(created)")
        for key in [id, "first"] {
            let shown = try object(node, "snapshot", "show", key)
            #expect(shown["id"] as? String == id && shown["evidence"] is [String: Any])
        }
    }

    @Test("the node is found by option, by environment, and by itself; results and errors come apart, with their codes")
    func finding() throws {
        let node = try TestNode()
        defer { node.stop() }
        let elsewhere = node.folder.path + "/nothing-here"
        func run(_ arguments: String..., environment: [String: String] = [:]) throws -> CommandResult {
            try Shell.run(
                [Components.bin + "/stillpoint"] + arguments,
                environment: environment.merging(["STILLPOINT_RUN_DIR": elsewhere]) { first, _ in first })
        }
        let before = try run("volume", "list")
        #expect(before.status == 3 && before.output.isEmpty && before.errors.contains("stillpoint serve"), "\(before)")
        try node.start()
        try node.must("volume", "create", "v", "--size", "1MiB")
        for found in [
            try run("--api", node.api, "--token-file", node.tokenFile, "volume", "list"),
            try run("volume", "list", "--api", node.api, "--token-file", node.tokenFile, "-o", "json"),
            try run(
                "volume", "list",
                environment: ["STILLPOINT_API": node.api, "STILLPOINT_TOKEN_FILE": node.tokenFile]),
        ] { #expect(found.status == 0 && !found.output.isEmpty && found.errors.isEmpty, "\(found)") }
        let stranger = try run("volume", "list", "--api", node.api, "--token-file", "/dev/null")
        #expect(stranger.status == 1 && stranger.output.isEmpty && stranger.errors.contains("token"), "\(stranger)")
        let failed = try node.cli("volume", "show", "nope", "-o", "json")
        #expect(failed.status == 1 && failed.output.isEmpty && failed.errors.contains("nope"), "\(failed)")
        let misused = try node.cli("volume", "show")
        #expect(misused.status == 2 && misused.output.isEmpty && !misused.errors.isEmpty, "\(misused)")
    }
}
