public import Foundation

/// What a running node leaves in its run directory (`node.json`), so that programs of the same user find it.
public struct NodeRecord: Codable, Sendable, Equatable {
    /// `https://HOST:PORT`.
    public var api: String
    /// Path of the file with the administrator's token, mode 0600.
    public var tokenFile: String
    /// Path of the certificate authority, PEM; nil where the API speaks plain HTTP.
    public var authorityFile: String?
    public var pid: Int32

    public init(api: String, tokenFile: String, authorityFile: String?, pid: Int32) {
        self.api = api
        self.tokenFile = tokenFile
        self.authorityFile = authorityFile
        self.pid = pid
    }
}

/// Where a node and the programs around it leave what lasts until the next boot.
public enum RunDirectory {
    /// `STILLPOINT_RUN_DIR`, else `/run/stillpoint` for root, else `$XDG_RUNTIME_DIR/stillpoint`, else
    /// `/tmp/stillpoint-UID`.
    public static func path(
        environment: [String: String] = ProcessInfo.processInfo.environment, user: uid_t = getuid()
    ) -> String {
        if let path = environment["STILLPOINT_RUN_DIR"], path.hasPrefix("/") { return path }
        if user == 0 { return "/run/stillpoint" }
        if let path = environment["XDG_RUNTIME_DIR"], path.hasPrefix("/") { return path + "/stillpoint" }
        return "/tmp/stillpoint-\(user)"
    }

    /// The nodes that left a record in `directory`, those that run first, `node.json` before the others. Records of
    /// nodes that listen elsewhere may lie beside it as `node-*.json`. A file that is not a record is passed over, and
    /// so is a directory of somebody else: its records could lead a token astray.
    public static func nodes(in directory: String) -> [NodeRecord] {
        var status = stat()
        guard lstat(directory, &status) == 0, status.st_uid == getuid() || status.st_uid == 0 else { return [] }
        let names = (try? FileManager.default.contentsOfDirectory(atPath: directory)) ?? []
        let candidates =
            ["node.json"] + names.filter { $0.hasPrefix("node-") && $0.hasSuffix(".json") }.sorted()
        let records = candidates.compactMap { name -> NodeRecord? in
            guard let data = FileManager.default.contents(atPath: directory + "/" + name) else { return nil }
            return try? APIJSON.decoder().decode(NodeRecord.self, from: data)
        }
        let isRunning = { (record: NodeRecord) in kill(record.pid, 0) == 0 || errno == EPERM }
        return records.filter(isRunning) + records.filter { !isRunning($0) }
    }
}
