package refold.bench;

import java.io.BufferedWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicReference;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AdminClientConfig;
import org.apache.kafka.clients.admin.RemoveMembersFromConsumerGroupOptions;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StoreQueryParameters;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.QueryableStoreTypes;
import org.apache.kafka.streams.state.Stores;

/**
 * Kafka Streams' side of the benchmark: one processor with a persistent (RocksDB), cached, change-logged store.
 *
 * <p>Two threads, at-least-once. Each task asks for a commit when it has folded the last event of its partition.
 * The clock runs from the first event folded until the committed offsets have reached every partition's end.
 * Then the models go to {@code models.tsv}, and the figures to {@code figures.txt}, in the given directory.
 *
 * <p>Arguments: bootstrap servers, topic, application id, directory, and partition=end pairs.
 */
public final class Main {
    private static final String STORE = "orders";
    private static final AtomicLong STARTED = new AtomicLong();
    private static final CountDownLatch FOLDED = new CountDownLatch(1);
    private static final AtomicInteger OPEN_PARTITIONS = new AtomicInteger();
    private static final AtomicReference<Throwable> FAILURE = new AtomicReference<>();

    private Main() {}

    public static void main(String[] arguments) throws Exception {
        String servers = arguments[0];
        String topic = arguments[1];
        String application = arguments[2];
        Path directory = Path.of(arguments[3]);
        Map<Integer, Long> ends = new HashMap<>();
        for (int i = 4; i < arguments.length; i++) {
            String[] pair = arguments[i].split("=");
            if (Long.parseLong(pair[1]) > 0) {
                ends.put(Integer.valueOf(pair[0]), Long.valueOf(pair[1]));
            }
        }
        OPEN_PARTITIONS.set(ends.size());

        Topology topology = new Topology();
        topology.addSource("events", Serdes.String().deserializer(), Serdes.ByteArray().deserializer(), topic);
        topology.addProcessor("fold", () -> new Fold(ends), "events");
        topology.addStateStore(
                Stores.keyValueStoreBuilder(Stores.persistentKeyValueStore(STORE), Serdes.String(), Model.serde())
                        .withCachingEnabled(),
                "fold");

        try (Admin admin = Admin.create(Map.of(AdminClientConfig.BOOTSTRAP_SERVERS_CONFIG, servers));
                KafkaStreams streams = new KafkaStreams(topology, settings(servers, application, directory))) {
            streams.setUncaughtExceptionHandler(error -> {
                FAILURE.set(error);
                FOLDED.countDown();
                return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
            });
            streams.start();
            FOLDED.await();
            while (FAILURE.get() == null && !isCommitted(admin, application, ends)) {
                TimeUnit.MILLISECONDS.sleep(5);
            }
            double seconds = (System.nanoTime() - STARTED.get()) / 1e9;
            if (FAILURE.get() != null) {
                throw new IllegalStateException(FAILURE.get());
            }
            Files.writeString(directory.resolve("figures.txt"), seconds + " " + peakRssKb());
            dump(streams, directory.resolve("models.tsv"));
            streams.close();
            // Closing does not leave the group, which could then not be deleted before its session times out.
            admin.removeMembersFromConsumerGroup(application, new RemoveMembersFromConsumerGroupOptions()).all().get();
        }
    }

    private static Properties settings(String servers, String application, Path directory) {
        Properties settings = new Properties();
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, application);
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, servers);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, directory.resolve("state").toString());
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 2);
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.AT_LEAST_ONCE);
        settings.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
        // As much cache as refold has, and larger batches both ways; all else is the default.
        settings.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 64L << 20);
        settings.put(StreamsConfig.BUFFERED_RECORDS_PER_PARTITION_CONFIG, 10_000);
        settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG), "earliest");
        settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.MAX_POLL_RECORDS_CONFIG), 5_000);
        settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.MAX_PARTITION_FETCH_BYTES_CONFIG), 4 << 20);
        settings.put(StreamsConfig.producerPrefix(ProducerConfig.COMPRESSION_TYPE_CONFIG), "lz4");
        settings.put(StreamsConfig.producerPrefix(ProducerConfig.BATCH_SIZE_CONFIG), 256 << 10);
        settings.put(StreamsConfig.producerPrefix(ProducerConfig.LINGER_MS_CONFIG), 100);
        return settings;
    }

    private static boolean isCommitted(Admin admin, String group, Map<Integer, Long> ends) throws Exception {
        var committed = admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get();
        long reached = committed.entrySet().stream()
                .filter(entry -> entry.getValue() != null)
                .filter(entry -> entry.getValue().offset() == ends.getOrDefault(entry.getKey().partition(), -1L))
                .count();
        return reached == ends.size();
    }

    private static void dump(KafkaStreams streams, Path path) throws Exception {
        var store = streams.store(
                StoreQueryParameters.fromNameAndType(STORE, QueryableStoreTypes.<String, Model>keyValueStore()));
        try (BufferedWriter writer = Files.newBufferedWriter(path);
                var models = store.all()) {
            while (models.hasNext()) {
                var entry = models.next();
                writer.write(entry.key + "\t" + entry.value.json() + "\n");
            }
        }
    }

    private static long peakRssKb() throws Exception {
        Path status = Path.of("/proc/self/status");
        if (!Files.exists(status)) {
            return 0;
        }
        return Files.readAllLines(status).stream()
                .filter(line -> line.startsWith("VmHWM:"))
                .mapToLong(line -> Long.parseLong(line.replaceAll("\\D", "")))
                .findFirst()
                .orElse(0);
    }

    /** The fold as a processor. One instance a task, that is, a partition; so nothing here is shared. */
    private static final class Fold implements Processor<String, byte[], Void, Void> {
        private final Map<Integer, Long> ends;
        private ProcessorContext<Void, Void> context;
        private KeyValueStore<String, Model> store;
        private long left;
        private boolean running;

        Fold(Map<Integer, Long> ends) {
            this.ends = ends;
        }

        @Override
        public void init(ProcessorContext<Void, Void> given) {
            context = given;
            store = given.getStateStore(STORE);
            left = ends.getOrDefault(given.taskId().partition(), 0L);
        }

        @Override
        public void process(Record<String, byte[]> record) {
            if (!running) {
                running = true;
                STARTED.compareAndSet(0, System.nanoTime());
            }
            Model model = store.get(record.key());
            if (model == null) {
                model = new Model();
            }
            model.fold(record.value());
            store.put(record.key(), model);
            left -= 1;
            if (left == 0) {
                context.commit();
                if (OPEN_PARTITIONS.decrementAndGet() == 0) {
                    FOLDED.countDown();
                }
            }
        }
    }
}
