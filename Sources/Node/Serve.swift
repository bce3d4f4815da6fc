import API
import BlockStore
import Catalog
import Foundation
import Glibc
import ISCSI
public import Logging
import NIOCore
import NIOPosix
import ServiceLifecycle

/// Why the node could not start, or had to stop; one sentence for people.
public struct ServeFailure: Error, Sendable, CustomStringConvertible {
    public var description: String

    init(_ description: String) { self.description = description }
}

/// Runs a storage node until SIGTERM or SIGINT, then ends it in order: no new requests, jobs and sessions ended,
/// outstanding commands answered, pool and catalog closed.
///
/// Prints a line for each address it listens on (`api URL`, `iscsi HOST:PORT`) on standard output once all of them
/// work.
///
/// - Parameters:
///   - logger: Where the node logs to; its level is taken from the configuration.
/// - Throws: ``ServeFailure`` when it cannot start, ``ConfigurationInvalid`` for a configuration that contradicts
/// itself.
public func serve(_ configuration: NodeConfiguration, logger: Logger) async throws {
    let problems = configuration.check()
    guard problems.isEmpty else { throw ConfigurationInvalid(problems: problems) }
    // Nothing that the node makes is for others.
    umask(0o077)
    do {
        let process = try await NodeProcess.start(configuration, logger: logger)
        do {
            try await process.run()
        } catch {
            await process.stop()
            throw error
        }
        await process.stop()
    } catch let failure as ServeFailure {
        throw failure
    } catch let failure as FileFailure {
        throw ServeFailure(failure.description)
    } catch let error as CatalogError {
        throw ServeFailure(error.description)
    } catch let error as PoolError {
        throw ServeFailure(error.description)
    }
}

/// The data directory while a node has it.
struct DataDirectory: Sendable {
    let path: String
    private let lock: Int32

    var pki: String { path + "/pki" }
    var catalog: String { path + "/catalog.sqlite" }
    var tokenFile: String { path + "/admin-token" }

    /// Makes the directory where it is missing, and takes it for this process.
    ///
    /// - Throws: ``ServeFailure`` where another process has it.
    init(_ path: String) throws {
        self.path = path
        try PrivateFile.makeDirectory(path)
        let file = path + "/lock"
        lock = open(file, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        guard lock >= 0 else { throw FileFailure("cannot open", file) }
        guard flock(lock, LOCK_EX | LOCK_NB) == 0 else {
            let reason = errno
            let holder = (try? String(contentsOfFile: file, encoding: .utf8))?
                .trimmingCharacters(in: .whitespacesAndNewlines)
            close(lock)
            guard reason == EWOULDBLOCK else {
                throw ServeFailure("cannot lock \(file): \(String(cString: strerror(reason)))")
            }
            let who = holder.flatMap { $0.isEmpty ? nil : " (process \($0))" } ?? ""
            throw ServeFailure(
                "another node\(who) serves the data directory \(path); stop it, or choose another with --data")
        }
        let text = "\(getpid())\n"
        _ = ftruncate(lock, 0)
        _ = text.withCString { pwrite(lock, $0, strlen($0), 0) }
    }

    /// The lock file stays: removing it would let two processes lock two files of one name.
    func release() { close(lock) }
}
