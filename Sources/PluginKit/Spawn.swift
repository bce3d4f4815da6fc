import CLinux
import Glibc

/// A user of this machine, as a child process becomes it.
public struct UserIdentity: Sendable, Equatable {
    public var uid: UInt32
    public var gid: UInt32
    public var name: String
    public var home: String

    /// - Throws: `badState` when the password database does not know the number.
    public init(uid: UInt32) throws(PluginFailure) {
        var record = passwd()
        var found: UnsafeMutablePointer<passwd>?
        var buffer = [CChar](repeating: 0, count: 16_384)
        let code = getpwuid_r(uid, &record, &buffer, buffer.count, &found)
        guard code == 0, found != nil else {
            throw PluginFailure(.badState, "There is no user with the number \(uid) on this machine")
        }
        self.uid = record.pw_uid
        gid = record.pw_gid
        name = String(cString: record.pw_name)
        home = String(cString: record.pw_dir)
    }

    /// All groups it is in.
    func groups() -> [gid_t] {
        var count: Int32 = 64
        while count <= 65_536 {
            var list = [gid_t](repeating: 0, count: Int(count))
            if getgrouplist(name, gid, &list, &count) >= 0 { return Array(list.prefix(Int(count))) }
            count = max(count, 64) * 2
        }
        return [gid]
    }
}

enum Spawn {
    /// Starts a program in a process group of its own. A descriptor of -1 stands for /dev/null.
    ///
    /// - Parameter diesWithThread: it is killed when the calling thread ends.
    /// - Throws: `spawnFailed`, also when the program cannot be executed.
    static func start(
        path: String, arguments: [String], environment: [String: String], directory: String, user: UserIdentity?,
        diesWithThread: Bool = false, input: Int32, output: Int32, error: Int32
    ) throws(PluginFailure) -> Int32 {
        let argv = CStringList(arguments)
        let envp = CStringList(environment.sorted { $0.key < $1.key }.map { "\($0.key)=\($0.value)" })
        defer {
            argv.free()
            envp.free()
        }
        let groups = user?.groups() ?? []
        var pid: pid_t = 0
        let code = clinux_spawn(
            path, argv.pointers, envp.pointers, directory, input, output, error, diesWithThread ? 1 : 0,
            user == nil ? 0 : 1, user?.uid ?? 0, user?.gid ?? 0, groups, groups.count, &pid)
        guard code == 0 else {
            throw PluginFailure(.spawnFailed, "\(path) cannot be started: \(errorText(code))")
        }
        return pid
    }
}

/// An argv or envp. The caller frees it.
private struct CStringList {
    let pointers: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>
    private let count: Int

    init(_ strings: [String]) {
        count = strings.count
        // SAFETY: `free` releases exactly what is allocated here.
        pointers = .allocate(capacity: strings.count + 1)
        for (index, string) in strings.enumerated() { pointers[index] = strdup(string) }
        pointers[strings.count] = nil
    }

    func free() {
        for index in 0..<count { Glibc.free(pointers[index]) }
        pointers.deallocate()
    }
}
