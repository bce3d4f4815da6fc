import API
import ArgumentParser
import Foundation

struct JobCommands: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "job", abstract: "Long work of the node.",
        subcommands: [List.self, ShowOne.self, Watch.self, Abandon.self])

    struct List: NodeCommand {
        static let configuration = CommandConfiguration(abstract: "List the jobs, the newest first.")

        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            let jobs = try await node.jobs()
            if connection.isJSON { return try Output.json(jobs) }
            Output.table(
                Table(
                    [
                        .left("ID"), .left("KIND"), .left("SUBJECT"), .left("STATE"), .left("STARTED"), .right("TOOK"),
                        .left("FAILURE"),
                    ],
                    rows: jobs.map { job in
                        [
                            job.id, job.kind, job.subject, job.state.rawValue, Show.time(job.createdAt),
                            job.endedAt.map { Show.seconds($0.timeIntervalSince(job.createdAt)) } ?? "",
                            job.failure?.message ?? "",
                        ]
                    }), whenEmpty: "There are no jobs")
        }
    }

    struct ShowOne: NodeCommand {
        static let configuration = CommandConfiguration(commandName: "show", abstract: "Show one job and its steps.")

        @Argument(help: "Id of the job.", completion: Names.jobs) var id: String
        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            let job = try await node.job(id)
            if connection.isJSON { return try Output.json(job) }
            print(JobReport.description(job))
        }
    }

    struct Watch: NodeCommand {
        static let configuration = CommandConfiguration(
            abstract: "Follow a job to its end.", discussion: "Exits with 1 when the job failed.")

        @Argument(help: "Id of the job.", completion: Names.jobs) var id: String
        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            let job = try await JobProgress(node: node, isQuiet: false).follow(try await node.job(id))
            if connection.isJSON { return try Output.json(job) }
            print(JobReport.description(job))
        }
    }
}

extension JobCommands {
    struct Abandon: NodeCommand {
        static let configuration = CommandConfiguration(
            abstract: "Give up a job that keeps trying until an agent has done its part.",
            discussion: """
                For jobs of the kinds restore.finish (brings back what was stopped for a revert) and guest.takeBack \
                (takes back the restore of a guest that was cut short). What is still stopped on that host, mount and \
                start it by hand.
                """)

        @Argument(help: "Id of the job.", completion: Names.jobs) var id: String
        @OptionGroup var connection: ConnectionOptions

        func run(on node: NodeClient) async throws {
            let job = try await node.abandonJob(id)
            if connection.isJSON { return try Output.json(job) }
            print("Job \(job.id) is given up: \(job.subject)")
        }
    }
}

enum JobReport {
    static func description(_ job: JobInfo) -> String {
        var text = Description()
        text.add("Id", job.id)
        text.add("Kind", job.kind)
        text.add("Subject", job.subject)
        text.add("State", job.state.rawValue)
        text.add("Started", Show.time(job.createdAt))
        text.add("Ended", job.endedAt.map(Show.time))
        text.add("Failure", job.failure?.message)
        text.add("What next", job.failure?.hint)
        text.add("Snapshot", job.result?.snapshot.map { "\($0.name) (\($0.id))" })
        text.add("Reverted", job.result?.revert.map { "\(Show.list($0.volumes)) to \($0.revertedTo)" })
        guard !job.steps.isEmpty else { return text.rendered() }
        let table = Table(
            [.left("STEP"), .left("STATE"), .right("TOOK"), .left("DETAIL")],
            rows: job.steps.map { step in
                [step.name, step.state.rawValue, step.seconds.map(Show.seconds) ?? "", step.detail ?? ""]
            })
        return text.rendered() + "\n\n" + table.rendered()
    }
}
