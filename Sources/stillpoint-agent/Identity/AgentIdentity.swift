import Crypto
import Foundation
import SwiftASN1
import X509

/// What an enrolled agent is: its name, its node, its key and certificates.
struct AgentIdentity: Sendable {
    struct Record: Codable, Sendable, Equatable {
        var name: String
        var nodeID: String
        /// Where it enrolled.
        var node: String
        /// `HOST:PORT` it told the node.
        var address: String
        var enrolledAt: Date
    }

    var record: Record
    var keyPEM: String
    var certificatePEM: String
    var authorityPEM: String

    var name: String { record.name }
    var nodeID: String { record.nodeID }

    func authority() throws -> Certificate { try Certificate(pemEncoded: authorityPEM) }
    func certificate() throws -> Certificate { try Certificate(pemEncoded: certificatePEM) }
}

/// What is wrong with the identity on disk, or with getting one.
struct IdentityError: Error, CustomStringConvertible, Equatable {
    var description: String
    /// The node did not answer; nothing was done.
    var isUnreachable = false

    init(_ description: String, isUnreachable: Bool = false) {
        self.description = description
        self.isUnreachable = isUnreachable
    }
}

/// The identity's files: `STATE/identity/{agent.json, key.pem, certificate.pem, authority.pem}`.
///
/// A new identity is written beside the old one and swapped in by renaming the folder, so that there is always a whole
/// one; a crash between the two renames is made good by the next `load`.
struct IdentityStore: Sendable {
    let directory: String

    private var current: String { directory + "/identity" }
    private var next: String { directory + "/identity.new" }
    private var previous: String { directory + "/identity.old" }

    var exists: Bool {
        repair()
        return FileManager.default.fileExists(atPath: current + "/agent.json")
    }

    /// Nil if the agent is not enrolled. A renewed identity that cannot be used gives way to the one before it,
    /// which is there until the node has seen the new one.
    func load() throws -> AgentIdentity? {
        guard exists else { return nil }
        do {
            return try load(from: current)
        } catch {
            guard FileManager.default.fileExists(atPath: previous + "/agent.json"),
                let identity = try? load(from: previous)
            else { throw error }
            return identity
        }
    }

    private func load(from folder: String) throws -> AgentIdentity {
        try checkPermissions(folder)
        do {
            let decoder = JSONDecoder()
            decoder.dateDecodingStrategy = .iso8601
            let identity = AgentIdentity(
                record: try decoder.decode(AgentIdentity.Record.self, from: read(folder, "agent.json")),
                keyPEM: String(decoding: try read(folder, "key.pem"), as: UTF8.self),
                certificatePEM: String(decoding: try read(folder, "certificate.pem"), as: UTF8.self),
                authorityPEM: String(decoding: try read(folder, "authority.pem"), as: UTF8.self))
            let key = try P256.Signing.PrivateKey(pemRepresentation: identity.keyPEM)
            guard try identity.certificate().publicKey == Certificate.PublicKey(key.publicKey) else {
                throw IdentityError("the key does not belong to the certificate")
            }
            return identity
        } catch {
            throw IdentityError("The identity in \(folder) cannot be used: \(error). Enroll again with --replace")
        }
    }

    /// - Parameter keepsPrevious: Leaves the one before beside it, until ``forgetPrevious()``.
    func save(_ identity: AgentIdentity, keepsPrevious: Bool = false) throws {
        let files = FileManager.default
        do {
            try files.createDirectory(
                atPath: directory, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
            try? files.removeItem(atPath: next)
            try? files.removeItem(atPath: previous)
            try files.createDirectory(
                atPath: next, withIntermediateDirectories: false, attributes: [.posixPermissions: 0o700])
            let encoder = JSONEncoder()
            encoder.dateEncodingStrategy = .iso8601
            encoder.outputFormatting = [.sortedKeys, .prettyPrinted]
            try write(identity.keyPEM, "key.pem", mode: 0o600)
            try write(identity.certificatePEM, "certificate.pem", mode: 0o644)
            try write(identity.authorityPEM, "authority.pem", mode: 0o644)
            // Last: a folder with this file is a whole one.
            try write(
                String(decoding: try encoder.encode(identity.record), as: UTF8.self), "agent.json", mode: 0o644)
            try synchronize(next)
            if files.fileExists(atPath: current) { try move(current, to: previous) }
            try move(next, to: current)
            try synchronize(directory)
            if !keepsPrevious { try? files.removeItem(atPath: previous) }
        } catch let error as IdentityError {
            throw error
        } catch {
            throw IdentityError("The identity cannot be stored in \(directory): \(error)")
        }
    }

    func forgetPrevious() { try? FileManager.default.removeItem(atPath: previous) }

    private func repair() {
        let files = FileManager.default
        guard !files.fileExists(atPath: current) else { return }
        if files.fileExists(atPath: next + "/agent.json") {
            try? move(next, to: current)
        } else if files.fileExists(atPath: previous + "/agent.json") {
            try? move(previous, to: current)
        }
    }

    private func checkPermissions(_ folder: String) throws {
        let path = folder + "/key.pem"
        guard let status = FileStatus(path: path) else {
            throw IdentityError("\(path) cannot be read: \(String(cString: strerror(errno)))")
        }
        guard status.mode & 0o077 == 0, status.isOurs else {
            throw IdentityError("\(path) must be readable for its owner only. Run: chmod 600 \(path)")
        }
    }

    private func read(_ folder: String, _ name: String) throws -> Data {
        try Data(contentsOf: URL(fileURLWithPath: folder + "/" + name))
    }

    private func write(_ text: String, _ name: String, mode: mode_t) throws {
        let path = next + "/" + name
        let descriptor = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode)
        guard descriptor >= 0 else { throw IdentityError("\(path): \(String(cString: strerror(errno)))") }
        defer { close(descriptor) }
        let handle = FileHandle(fileDescriptor: descriptor, closeOnDealloc: false)
        try handle.write(contentsOf: Data(text.utf8))
        guard fsync(descriptor) == 0 else { throw IdentityError("\(path): \(String(cString: strerror(errno)))") }
    }

    private func synchronize(_ path: String) throws {
        let descriptor = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else { throw IdentityError("\(path): \(String(cString: strerror(errno)))") }
        defer { close(descriptor) }
        guard fsync(descriptor) == 0 else { throw IdentityError("\(path): \(String(cString: strerror(errno)))") }
    }

    private func move(_ old: String, to new: String) throws {
        guard rename(old, new) == 0 else {
            throw IdentityError("\(old) cannot be renamed: \(String(cString: strerror(errno)))")
        }
    }
}
