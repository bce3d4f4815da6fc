import API
import ArgumentParser
import CLinux
import Foundation
import Glibc

/// `stillpoint serve` is the storage node; every other verb is a call to one.
@main
struct Stillpoint: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "stillpoint",
        abstract: "Application-consistent snapshots of block storage, and their way back.",
        discussion: """
            Without --api the node of this machine is found by itself. Exit codes: 0 done, 1 the operation failed, \
            2 wrong usage, 3 the node cannot be reached.
            """,
        version: Release.version,
        subcommands: [
            Serve.self, ConfigCheck.self, Status.self, PoolCommands.self, VolumeCommands.self, SnapshotCommands.self,
            CloneCommands.self, ReceiveCommands.self, TargetCommands.self, PortalCommands.self, SessionCommands.self,
            DiscoveryCommands.self, AgentCommands.self,
            GuestCommands.self,
            JobCommands.self,
        ])

    // Here too, so that the options are also accepted before the noun; the verbs take over what was parsed here.
    @OptionGroup var connection: ConnectionOptions

    func run() async throws {
        throw CleanExit.helpRequest(self)
    }

    /// Keeps the C library from reserving 64 MiB of addresses for each thread, eight times the number of processors:
    /// that is no memory, but counts towards a limit of the address space (`ulimit -v`). `MALLOC_ARENA_MAX` decides
    /// otherwise.
    private static func limitArenas(to most: Int) {
        guard getenv("MALLOC_ARENA_MAX") == nil else { return }
        _ = clinux_limit_arenas(Int32(min(max(2, sysconf(Int32(_SC_NPROCESSORS_ONLN))), most)))
    }

    /// Each thread reserves 8 MiB of addresses for its stack, and there are several for each processor. Where addresses
    /// are limited, that would be most of them on a large machine: then a thread gets 1 MiB, which none comes near.
    private static func limitAddresses() {
        var limit = rlimit()
        guard getrlimit(__rlimit_resource_t(RLIMIT_AS.rawValue), &limit) == 0, limit.rlim_cur != rlim_t.max else {
            return limitArenas(to: 8)
        }
        limitArenas(to: 2)
        _ = clinux_limit_stacks(1 << 20)
    }

    static func main() async {
        limitAddresses()
        do {
            var command = try await asyncParseAsRoot(nil)
            if var command = command as? any AsyncParsableCommand {
                try await command.run()
            } else {
                try command.run()
            }
        } catch {
            Glibc.exit(Outcome.report(error))
        }
    }
}
