import CLibPQ
import CLinux
import Glibc
import PluginKit
import Synchronization

/// One connection to a server, used by one caller at a time. Every wait has an end.
final class Connection: Sendable {
    /// The pointer of libpq, nil when closed.
    private struct Handle: @unchecked Sendable {
        // SAFETY: libpq's connection may be used by any thread, but by one at a time: the mutex around it sees to that.
        var pointer: OpaquePointer?
    }

    struct Limit: Sendable {
        var deadline: MonotonicInstant
        var shouldStop: @Sendable () -> Bool = { false }

        func check(_ what: String) throws(PluginFailure) {
            if deadline <= .now {
                throw PluginFailure(.timedOut, "PostgreSQL did not answer in time: \(what)")
            }
            if shouldStop() { throw PluginFailure(.cancelled, "The hold is not wanted any more") }
        }

        /// Short enough to notice `shouldStop`.
        var milliseconds: Int32 { Int32(min(max(deadline.secondsFromNow * 1_000, 0) + 1, 100)) }
    }

    let serverVersion: Int
    private let handle: Mutex<Handle>

    private init(_ pointer: OpaquePointer) {
        serverVersion = Int(PQserverVersion(pointer))
        handle = Mutex(Handle(pointer: pointer))
    }

    deinit { close() }

    /// Blocks. As root, the calling thread is the cluster's user while it connects, so that peer authentication sees
    /// that user: use a thread of its own.
    static func open(
        _ cluster: Cluster, _ configuration: PostgreSQLConfiguration.Cluster, limit: Limit
    ) throws(PluginFailure) -> Connection {
        let before = (uid: geteuid(), gid: getegid())
        if before.uid == 0 {
            let code = clinux_become_on_this_thread(cluster.owner.uid, cluster.owner.gid)
            guard code == 0 else {
                throw PluginFailure(.operatingSystem, "The thread cannot become \(cluster.owner.name)")
            }
        }
        defer {
            if before.uid == 0, clinux_become_on_this_thread(0, before.gid) != 0 {
                // It would do the rest of its work without the rights for it.
                abort()
            }
        }
        return try connect(parameters(cluster, configuration), cluster.name, limit)
    }

    private static func parameters(
        _ cluster: Cluster, _ configuration: PostgreSQLConfiguration.Cluster
    ) -> [(String, String)] {
        var parameters: [(String, String)]
        if let conninfo = configuration.conninfo {
            parameters = [("dbname", conninfo)]
        } else {
            let address = cluster.listenAddress.isEmpty || cluster.listenAddress == "*" ? "localhost" : nil
            parameters = [
                ("host", cluster.socketDirectory ?? address ?? cluster.listenAddress), ("port", "\(cluster.port)"),
                ("user", configuration.user ?? cluster.owner.name),
                ("dbname", configuration.database ?? "postgres"),
            ]
        }
        if let file = configuration.passFile { parameters.append(("passfile", file)) }
        parameters += [("application_name", "stillpoint"), ("client_encoding", "UTF8")]
        return parameters
    }

    private static func connect(
        _ parameters: [(String, String)], _ name: String, _ limit: Limit
    ) throws(PluginFailure) -> Connection {
        // SAFETY: libpq copies what it needs before PQconnectStartParams returns.
        var keywords: [UnsafePointer<CChar>?] = parameters.map { UnsafePointer(strdup($0.0)) } + [nil]
        var values: [UnsafePointer<CChar>?] = parameters.map { UnsafePointer(strdup($0.1)) } + [nil]
        defer { for pointer in keywords + values { free(UnsafeMutablePointer(mutating: pointer)) } }
        guard let pointer = PQconnectStartParams(&keywords, &values, 1) else {
            throw PluginFailure(.operatingSystem, "There is no memory for a connection")
        }
        var isReady = false
        defer { if !isReady { PQfinish(pointer) } }
        var phase = PGRES_POLLING_WRITING
        while phase != PGRES_POLLING_OK {
            if PQstatus(pointer) == CONNECTION_BAD || phase == PGRES_POLLING_FAILED {
                throw PluginFailure(
                    .quiesceFailed, "\(name) cannot be connected to: \(text(PQerrorMessage(pointer)))",
                    hint: "The plug-in's configuration can name another user, a conninfo and a passFile")
            }
            try limit.check("connecting to \(name)")
            var polled = pollfd(
                fd: PQsocket(pointer), events: Int16(phase == PGRES_POLLING_READING ? POLLIN : POLLOUT), revents: 0)
            if poll(&polled, 1, limit.milliseconds) > 0 { phase = PQconnectPoll(pointer) }
        }
        guard PQsetnonblocking(pointer, 1) == 0 else {
            throw PluginFailure(.operatingSystem, "The connection cannot be made non-blocking")
        }
        // Not on standard error in the middle of a hold.
        PQsetNoticeProcessor(pointer, { _, _ in }, nil)
        isReady = true
        return Connection(pointer)
    }

    /// Blocks until the rows are there. A query that takes too long is cancelled, and the connection closed: what is
    /// then still on its way to us could only be mistaken for something else.
    ///
    /// - Throws: `quiesceFailed` with the server's words, `holdLost` when the connection is gone, `timedOut`,
    ///   `cancelled`.
    @discardableResult
    func query(
        _ statement: String, _ arguments: [String] = [], limit: Limit
    ) throws(PluginFailure) -> [[String?]] {
        let result: Result<[[String?]], PluginFailure> = handle.withLock { handle in
            do throws(PluginFailure) {
                return .success(try Self.query(handle.pointer, statement, arguments, limit))
            } catch {
                if error.code == .timedOut || error.code == .cancelled, let pointer = handle.pointer {
                    Self.cancel(pointer)
                    PQfinish(pointer)
                    handle.pointer = nil
                }
                return .failure(error)
            }
        }
        return try result.get()
    }

    private static func query(
        _ pointer: OpaquePointer?, _ statement: String, _ arguments: [String], _ limit: Limit
    ) throws(PluginFailure) -> [[String?]] {
        guard let pointer else { throw PluginFailure(.holdLost, "The connection to PostgreSQL was closed") }
        let values: [UnsafePointer<CChar>?] = arguments.map { UnsafePointer(strdup($0)) }
        defer { for value in values { free(UnsafeMutablePointer(mutating: value)) } }
        guard PQsendQueryParams(pointer, statement, Int32(values.count), nil, values, nil, nil, 0) == 1 else {
            throw lost(pointer)
        }
        while true {
            let flushed = PQflush(pointer)
            if flushed < 0 { throw lost(pointer) }
            if flushed == 0, PQisBusy(pointer) == 0 { break }
            try limit.check(statement)
            var polled = pollfd(fd: PQsocket(pointer), events: Int16(POLLIN | (flushed > 0 ? POLLOUT : 0)), revents: 0)
            guard poll(&polled, 1, limit.milliseconds) > 0 else { continue }
            if PQconsumeInput(pointer) == 0 { throw lost(pointer) }
        }
        return try rows(pointer, statement, limit)
    }

    private static func rows(
        _ pointer: OpaquePointer, _ statement: String, _ limit: Limit
    ) throws(PluginFailure) -> [[String?]] {
        var rows: [[String?]] = []
        var failure: PluginFailure?
        // All results up to the end, so that the connection can take the next query.
        while let result = PQgetResult(pointer) {
            defer { PQclear(result) }
            let status = PQresultStatus(result)
            if status == PGRES_TUPLES_OK {
                rows += (0..<PQntuples(result)).map { row in
                    (0..<PQnfields(result)).map { column in
                        PQgetisnull(result, row, column) == 1 ? nil : String(cString: PQgetvalue(result, row, column))
                    }
                }
            } else if status != PGRES_COMMAND_OK {
                let primary = PQresultErrorField(result, Int32(UInt8(ascii: "M")))
                failure = PluginFailure(
                    .quiesceFailed,
                    "PostgreSQL refused \(statement): "
                        + (primary.map { String(cString: $0) } ?? text(PQerrorMessage(pointer))))
            }
        }
        if PQstatus(pointer) == CONNECTION_BAD { throw lost(pointer) }
        if let failure { throw failure }
        return rows
    }

    private static func lost(_ pointer: OpaquePointer) -> PluginFailure {
        PluginFailure(.holdLost, "The connection to PostgreSQL was lost: \(text(PQerrorMessage(pointer)))")
    }

    private static func cancel(_ pointer: OpaquePointer) {
        guard let cancel = PQgetCancel(pointer) else { return }
        var buffer = [CChar](repeating: 0, count: 256)
        PQcancel(cancel, &buffer, 256)
        PQfreeCancel(cancel)
    }

    private static func text(_ message: UnsafeMutablePointer<CChar>?) -> String {
        message.map { String(cString: $0).split(separator: "\n").joined(separator: "; ") } ?? "unknown"
    }

    /// The descriptor to wait on for news from the server; nil when closed.
    var socket: Int32? { handle.withLock { $0.pointer.map { PQsocket($0) } } }

    /// Takes what has arrived, and says why the connection is gone, if it is. Nil also when we closed it ourselves.
    func lossAfterReading() -> String? {
        handle.withLock { handle in
            guard let pointer = handle.pointer else { return nil }
            let isRead = PQconsumeInput(pointer) == 1
            return isRead && PQstatus(pointer) == CONNECTION_OK ? nil : Self.text(PQerrorMessage(pointer))
        }
    }

    func close() {
        handle.withLock { handle in
            if let pointer = handle.pointer { PQfinish(pointer) }
            handle.pointer = nil
        }
    }
}
