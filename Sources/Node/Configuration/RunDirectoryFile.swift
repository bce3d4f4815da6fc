import API
import Foundation
import Glibc

/// The record in the run directory, by which programs of the same user on this machine find the node.
struct RunDirectoryFile: Sendable {
    private let path: String
    private let pid: Int32

    /// Writes `node.json`, or `node-PORT.json` beside it where another node that is alive has that.
    ///
    /// - Throws: ``FileFailure`` when the directory cannot be made or is somebody else's.
    init(_ record: NodeRecord, port: Int, directory: String) throws {
        pid = record.pid
        if !FileManager.default.fileExists(atPath: directory) {
            // Others may look through it: attachments lie here, which the agent's user reads.
            do {
                try FileManager.default.createDirectory(
                    atPath: directory, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o755])
            } catch {
                throw FileFailure(message: "cannot create \(directory): \(reasonText(error))")
            }
        }
        let attributes = (try? FileManager.default.attributesOfItem(atPath: directory)) ?? [:]
        let isOurs = (attributes[.ownerAccountID] as? NSNumber)?.uint32Value == geteuid()
        guard isOurs, attributes[.type] as? FileAttributeType == .typeDirectory else {
            throw FileFailure(message: "the run directory \(directory) is not a directory of this user")
        }
        let first = directory + "/node.json"
        if let other = Self.record(first), other.pid != record.pid, kill(other.pid, 0) == 0 || errno == EPERM {
            path = directory + "/node-\(port).json"
        } else {
            path = first
        }
        try PrivateFile.write(try APIJSON.encoder(pretty: true).encode(record), to: path)
    }

    /// Removes the file if it is still this process's.
    func remove() {
        if Self.record(path)?.pid == pid { _ = unlink(path) }
    }

    private static func record(_ path: String) -> NodeRecord? {
        FileManager.default.contents(atPath: path).flatMap { try? APIJSON.decoder().decode(NodeRecord.self, from: $0) }
    }
}
